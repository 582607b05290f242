"""Object detection: boxes and their classes, for each picture.

Legend: B batch, N boxes of a picture at most, A anchors of a picture, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ppll_cli.config.commands import pip_install
from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.tasks.boxes import BACKGROUND, Detections, best_detections, matched, offsets
from ppll_cli.tasks.details import Details
from ppll_cli.tasks.focal_loss import FocalLoss
from ppll_cli.tasks.level_head import LevelHead
from ppll_cli.tasks.precision import (
    COLUMNS,
    FOUND,
    PICTURE,
    THERE,
    average_precisions,
    precisions_by_class,
)
from ppll_cli.tasks.pyramid import (
    STRIDES,
    BankedPyramid,
    HeadStyle,
    Maps,
    PyramidHead,
    SmallestHead,
    split_prediction,
)
from ppll_cli.tasks.task import CopiedNetwork, Copies, Task, only_for

BOXES = "boxes"
"""Left, top, right and bottom of each box, in pixels of the batch's images, float32 [B, N, 4]."""

LABELS = "labels"
"""Classes of the boxes, from 0, int64 [B, N]."""

IGNORED = "ignored"
"""Whether a box is left out of loss and score: crowds (COCO), difficult ones (VOC), bool [B, N]."""

COUNT = "count"
"""How many boxes a picture has, int64 [B]; what stands behind them is of no account."""

NUMBER = "number"
"""Which picture of its split it is, int64 [B]."""

FRAME = "frame"
"""Height and width of the picture inside of the batch's image (pixels; the rest is padding), and by
what its own height and width were multiplied to be that, float32 [B, 4]."""


LARGEST_TABLE = 2**24
"""Numbers in a table of pictures, anchors, and boxes or classes: 64 MiB of float32. A loss has a
few such tables at a time. A picture of 800x1333 with 80 classes has one of about this size."""


@dataclass(frozen=True)
class Detection:
    """Predictions are anchors with deltas and logits; the metric is COCO's average precision.

    The loss is RetinaNet's (arXiv 1708.02002), as torchvision computes it. An anchor is positive if
    it overlaps a box enough, negative if it overlaps none, and left out in between. For each
    picture, the focal loss of positive and negative anchors and the absolute error of the deltas of
    positive anchors are divided by the number of positive anchors; the loss is the mean over
    pictures.

    Attributes:
        classes: Their names.
        boxes: N.
        height: Of the largest images, a multiple of 32 (pixels).
        width: Of the widest images, a multiple of 32 (pixels).
        anchor: Side of the smallest anchors (pixels), those of the maps of stride 8.
        crowds: Whether ignored boxes are crowds, as COCO counts them, or single difficult objects.
        level_heads: Style of the model's head, where each module is trained on the levels of its
            own map alone; None: on all levels of the pyramid.
        metric: Its name.
    """

    classes: tuple[str, ...]
    boxes: int
    height: int
    width: int
    anchor: int
    crowds: bool = False
    level_heads: HeadStyle | None = None
    metric: str = "ap"

    def __post_init__(self) -> None:
        if find_spec("pycocotools") is None:
            problem = "object detection is measured by pycocotools, which is not installed"
            raise ConfigError("data", "detection", problem, pip_install("pycocotools"))

    @property
    def targets(self) -> Mapping[str, ValueSpec]:
        """Of each batch, in training and evaluation."""
        return {
            BOXES: ValueSpec((self.boxes, 4), torch.float32),
            LABELS: ValueSpec((self.boxes,), torch.int64),
            IGNORED: ValueSpec((self.boxes,), torch.bool),
            COUNT: ValueSpec((), torch.int64),
            NUMBER: ValueSpec((), torch.int64),
            FRAME: ValueSpec((4,), torch.float32),
        }

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The mean over pictures; no shape depends on a value, so nothing waits for a device.

        Pictures are taken together as far as `LARGEST_TABLE` allows.
        """
        prediction = prediction.float()
        per_picture = prediction.shape[1] * max(self.boxes, len(self.classes))
        together = max(1, LARGEST_TABLE // per_picture)
        boxes, labels, ignored, counts = (
            torch.split(values[name], together) for name in (BOXES, LABELS, IGNORED, COUNT)
        )
        parts = zip(torch.split(prediction, together), boxes, labels, ignored, counts, strict=True)
        return torch.cat([self._losses(*part) for part in parts]).mean()

    def _losses(
        self, prediction: Tensor, boxes: Tensor, labels: Tensor, ignored: Tensor, counts: Tensor
    ) -> Tensor:
        """The loss of each picture, [B]."""
        _, anchors, deltas, logits = split_prediction(prediction)
        wanted = (torch.arange(self.boxes, device=boxes.device) < counts[:, None]) & ~ignored
        # A box that fits none of a module's own levels is another module's.
        which = matched(boxes, wanted, anchors, self.level_heads is None)
        found, given = which >= 0, which.clamp(min=0)
        numbers = torch.arange(len(self.classes), device=labels.device)
        classes = (labels.gather(1, given)[..., None] == numbers) & found[..., None]
        focal: Tensor = FocalLoss.apply(logits, classes)
        counted = found | (which == BACKGROUND)
        # Anchors without a box are given themselves, so that no logarithm is of zero.
        right = boxes.gather(1, given[..., None].expand(-1, -1, 4))
        right = torch.where(found[..., None], right, anchors)
        distance = (deltas - offsets(right, anchors)).abs()
        sums = _sums(focal, counted) + _sums(distance, found)
        return sums / found.sum(dim=1).clamp(min=1)

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """A row for each picture, and each box that is there or was found, as `precision` has them.

        In training there are none: to look for boxes in each batch would take too long.
        """
        if training:
            return prediction.new_empty(0, COLUMNS, dtype=torch.float64)
        rows = []
        for number, found in enumerate(self.detections(prediction, values[FRAME])):
            count = int(values[COUNT][number])
            rise = values[FRAME][number, [3, 2, 3, 2]]
            picture = values[NUMBER][number]
            there = values[BOXES][number, :count] / rise
            labels, ignored = values[LABELS][number, :count], values[IGNORED][number, :count]
            nothing = torch.zeros(1, device=there.device)
            rows += [
                _rows(PICTURE, picture, nothing, nothing[:, None], nothing),
                _rows(THERE, picture, labels, there, ignored),
                _rows(FOUND, picture, found.labels, found.boxes, found.scores),
            ]
        return torch.cat(rows)

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """AP, AP at an overlap of 0.5 and 0.75 (pycocotools), and VOC's AP at 0.5 in both ways.

        VOC's only where ignored boxes are no crowds, of which it knows nothing.
        """
        return average_precisions(rows, self.classes, self.crowds) if len(rows) else {}

    def details(self, rows: Tensor, names: Sequence[str]) -> Details:
        """Average precision by class."""
        return precisions_by_class(rows, names, self.crowds)

    def detections(self, prediction: Tensor, frame: Tensor) -> list[Detections]:
        """What is found in each picture, best first, in pixels of the picture as it was.

        Args:
            prediction: float [B, A, 9 + C].
            frame: As a batch carries it.
        """
        found = []
        for of_one, (height, width, down, across) in zip(
            prediction.float(), frame.tolist(), strict=True
        ):
            best = best_detections(*split_prediction(of_one), height, width)
            rise = torch.tensor([across, down, across, down], device=prediction.device)
            found.append(best._replace(boxes=best.boxes / rise))
        return found

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """The map, pooled to each stride of a pyramid, and one convolution for all of them.

        With `level_heads` a `LevelHead` over the map.
        """
        if self.level_heads is not None:
            stride = self.stride("local.detection_head", "level", shape)
            return self._level_head([(stride, shape[0])], self.level_heads)
        stride = self.stride("local", "greedy", shape)
        return SmallestHead(shape[0], stride, len(self.classes), self.anchor)

    def banked(self, shape: tuple[int, ...]) -> nn.Module | None:
        """Maps that a pyramid reads, as they are."""
        return nn.Identity() if self.stride("fba", "on", shape) in STRIDES else None

    def bank_network(
        self, copies: Copies, banked: Sequence[tuple[int, ...]], bank: FeatureBank
    ) -> nn.Module:
        """A pyramid of banked maps, of the module's and of those that copied units make of it.

        With `level_heads` a `LevelHead` over the module's map and the banked ones. If the module's
        map is finer than the finest level, copied units lead down to that level; others are not
        needed.
        """
        head = pyramid_head(copies.head, "local", "fba", "use local=greedy")
        if not bank.shared_head:
            problem = "a pyramid's convolutions are what joins maps to the head"
            raise ConfigError("fba.shared_head", False, problem, "leave it out")
        own = [(self.stride("local", "fba", shape), shape[0]) for shape in copies.shapes]
        earlier = [(self.stride("local", "fba", shape), shape[0]) for shape in banked]
        if self.level_heads is None:
            return BankedPyramid(copies.units, head, own, earlier, bank.joined)
        coarsest = max(STRIDES[0], own[0][0])
        kept = [number for number, (stride, _) in enumerate(own) if stride <= coarsest]
        units = [copies.units[number - 1] for number in kept[1:]]
        maps = [own[kept[-1]], *earlier]
        return CopiedNetwork(units, self._level_head(maps, self.level_heads, bank.joined))

    def _level_head(self, maps: Maps, style: HeadStyle, fusion: str = "concatenate") -> LevelHead:
        """A head for the levels of the first map's stride.

        Raises:
            ConfigError: The map is coarser than all that a pyramid is made of.
        """
        if maps[0][0] > STRIDES[-1]:
            problem = f"has levels for maps of stride 8, 16 and 32, not {maps[0][0]}"
            raise ConfigError("local.detection_head", "level", problem, "use pyramid")
        return LevelHead(maps, style, len(self.classes), self.anchor, fusion)

    def stride(self, key: str, value: str, shape: tuple[int, ...]) -> int:
        """How many pixels of the image a step in a map is.

        Raises:
            ConfigError: It is no map, or does not divide the image evenly; `key=value` is to blame.
        """
        if len(shape) == 3 and self.height % shape[1] == 0:
            stride = self.height // shape[1]
            if self.width == stride * shape[2] and stride & (stride - 1) == 0:
                return stride
        problem = f"finds boxes in maps of an image of {self.height}x{self.width}, and a module "
        problem += f"ends in {list(shape)}"
        raise ConfigError(key, value, problem, "use model=retinanet")


def _sums(rows: Tensor, counted: Tensor) -> Tensor:
    """What counts of each picture, [B], given rows [B, A, columns] and which count, [B, A].

    Picture by picture: on CPU threads share a picture's sum, where they would take whole pictures
    of a batch, and so the order of the additions would depend on how many pictures there are.
    """
    return torch.stack([each.sum() for each in torch.where(counted[..., None], rows, 0.0)])


def _rows(kind: int, picture: Tensor, labels: Tensor, boxes: Tensor, last: Tensor) -> Tensor:
    """One row for each box."""
    rows = torch.empty(len(boxes), COLUMNS, dtype=torch.float64, device=boxes.device)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 7] = kind, picture, labels, last
    rows[:, 3:7] = boxes
    return rows


def detection_of(task: Task, name: str, key: str = "model") -> Detection:
    """The task, for `key=name`.

    Raises:
        ConfigError: It is another one.
    """
    data = "with boxes: data=fashion_scenes, data=voc or data=coco"
    return only_for(Detection, task, key, name, "detection", data)


def pyramid_head(head: nn.Module, key: str, value: str, other: str) -> PyramidHead:
    """The model's head, for `key=value`.

    Args:
        head: The head.
        key: What needs it.
        value: The chosen value of that key.
        other: What else can be done, for the message.

    Raises:
        ConfigError: It is another one, of a user's own model.
    """
    if isinstance(head, PyramidHead):
        return head
    problem = f"the model's head, {type(head).__name__}, does not say how it reads a pyramid"
    remedy = f"derive it from ppll_cli.tasks.pyramid.PyramidHead, or {other}"
    raise ConfigError(key, value, problem, remedy)
