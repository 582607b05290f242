"""Object detection: boxes and their classes in each picture.

Legend: B batch, N largest number of boxes of a picture, A anchors of a picture, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppll_cli.config.commands import pip_install
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.tasks.boxes import BACKGROUND, Detections, best_detections, matched, offsets
from ppll_cli.tasks.details import Details
from ppll_cli.tasks.focal_loss import FocalLoss
from ppll_cli.tasks.precision import (
    COLUMNS,
    FOUND,
    PICTURE,
    TRUE_BOX,
    average_precisions,
    precisions_by_class,
)
from ppll_cli.tasks.pyramid import SmallestHead, split_prediction
from ppll_cli.tasks.task import Task, only_for

BOXES = "boxes"
"""Name of the boxes: left, top, right and bottom in pixels of the images, float32 [B, N, 4]."""

LABELS = "labels"
"""Name of the boxes' classes, from 0, int64 [B, N]."""

IGNORED = "ignored"
"""Name of the flags, bool [B, N], of boxes that the score ignores: crowds in COCO, and difficult
objects in VOC. The loss assigns them to no anchor, so anchors there are trained as background.
"""

COUNT = "count"
"""Name of the number of boxes in each picture, int64 [B]. Elements of `BOXES`, `LABELS` and
`IGNORED` after this number are padding.
"""

NUMBER = "number"
"""Name of the index of each picture within its split, int64 [B]."""

FRAME = "frame"
"""Name of the tensor, float32 [B, 4], that describes how each picture was scaled and padded.

A row has the height and width of the scaled picture in pixels, without padding, and the factors by
which the height and width were scaled.
"""


LARGEST_TABLE = 2**24
"""Largest number of elements of a tensor [pictures, anchors, boxes or classes] in the loss: 64 MiB
in float32. To keep this limit, the loss processes a batch in groups of pictures. A group has at
least one picture, even if its tensor is larger.
"""


@dataclass(frozen=True)
class Detection:
    """Object detection with anchors. The metric is COCO's average precision.

    The loss is RetinaNet's (arXiv 1708.02002), as torchvision computes it. For each picture, the
    focal loss of the classes and the absolute error of the deltas are summed over anchors. The sum
    is divided by the number of anchors that are matched to a box, or by 1 if there are none.
    `ppll_cli.tasks.boxes.matched` matches them.

    Attributes:
        classes: Names of the classes.
        boxes: N, the largest number of boxes of a picture.
        height: Largest height of images in pixels, a multiple of 32.
        width: Largest width of images in pixels, a multiple of 32.
        anchor: Side in pixels of the smallest anchors, which belong to maps of stride 8.
        crowds: True if ignored boxes are crowds (COCO); False if they are difficult objects (VOC).
        forced: The argument `forced` of `ppll_cli.tasks.boxes.matched`.

    Raises:
        ConfigError: pycocotools is not installed.
    """

    classes: tuple[str, ...]
    boxes: int
    height: int
    width: int
    anchor: int
    crowds: bool = False
    metric: str = "ap"
    forced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if find_spec("pycocotools") is None:
            problem = "object detection is measured by pycocotools, which is not installed"
            raise ConfigError("data", "detection", problem, pip_install("pycocotools"))

    @property
    def targets(self) -> Mapping[str, ValueSpec]:
        """Shape (without the batch dimension) and dtype of each target, by name."""
        return {
            BOXES: ValueSpec((self.boxes, 4), torch.float32),
            LABELS: ValueSpec((self.boxes,), torch.int64),
            IGNORED: ValueSpec((self.boxes,), torch.bool),
            COUNT: ValueSpec((), torch.int64),
            NUMBER: ValueSpec((), torch.int64),
            FRAME: ValueSpec((4,), torch.float32),
        }

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over pictures, a float32 scalar.

        The prediction is float [B, A, 9 + C]: see `ppll_cli.tasks.pyramid.split_prediction`.
        """
        # No tensor's shape depends on values in tensors, so the host never waits for the device.
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
        _, anchors, deltas, logits = split_prediction(prediction)
        wanted = (torch.arange(self.boxes, device=boxes.device) < counts[:, None]) & ~ignored
        which = matched(boxes, wanted, anchors, self.forced)
        found, given = which >= 0, which.clamp(min=0)
        numbers = torch.arange(len(self.classes), device=labels.device)
        classes = (labels.gather(1, given)[..., None] == numbers) & found[..., None]
        focal: Tensor = FocalLoss.apply(logits, classes)
        counted = found | (which == BACKGROUND)
        # An anchor without a box is compared with itself, to avoid the logarithm of zero.
        right = boxes.gather(1, given[..., None].expand(-1, -1, 4))
        right = torch.where(found[..., None], right, anchors)
        distance = (deltas - offsets(right, anchors)).abs()
        sums = _sums(focal, counted) + _sums(distance, found)
        return sums / found.sum(dim=1).clamp(min=1)

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """Return rows, float64 [n, 8]: one for each picture, each true box and each detection.

        `ppll_cli/tasks/precision.py` defines their columns. In training, return no rows.
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
                _rows(TRUE_BOX, picture, labels, there, ignored),
                _rows(FOUND, picture, found.labels, found.boxes, found.scores),
            ]
        return torch.cat(rows)

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """Return COCO's `ap`, `ap50` and `ap75`, in [0, 1].

        If the task's `crowds` is False, also return VOC's `voc_ap50` (area under the curve) and
        `voc07_ap50` (mean of 11 points of the curve). A value is NaN if there are no boxes to find.
        Without rows, return no scores.
        """
        return average_precisions(rows, self.classes, self.crowds) if len(rows) else {}

    def details(self, rows: Tensor, names: Sequence[str]) -> Details:
        """Return the average precision of each class."""
        return precisions_by_class(rows, names, self.crowds)

    def detections(self, prediction: Tensor, frame: Tensor) -> list[Detections]:
        """Return the detections of each picture, best first, in pixels of the original picture.

        The prediction is float [B, A, 9 + C], and `frame` is the batch's `FRAME`.
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
        """Return the smallest network that predicts boxes from a map [C, H, W] of this shape.

        Raises:
            ConfigError: `stride` refuses the shape.
        """
        stride = self.stride("local", "greedy", shape)
        return SmallestHead(shape[0], stride, len(self.classes), self.anchor)

    def stride(self, key: str, value: str, shape: tuple[int, ...]) -> int:
        """Return the stride of a map: the number of image pixels from one position to the next.

        Args:
            key: The setting that an error names, such as `local`.
            value: The value of this setting, such as `greedy`.
            shape: Shape of the map, [C, H, W].

        Raises:
            ConfigError: The shape is not the shape of a map, or the stride is not a power of 2, or
                height and width have different strides.
        """
        if len(shape) == 3 and self.height % shape[1] == 0:
            stride = self.height // shape[1]
            if self.width == stride * shape[2] and stride & (stride - 1) == 0:
                return stride
        problem = (
            f"finds boxes in maps [C, H, W] with a stride that is a power of 2, for pictures of "
            f"{self.height}x{self.width} pixels, but a module ends in {list(shape)}"
        )
        raise ConfigError(key, value, problem, "use model=retinanet")


def _sums(losses: Tensor, counted: Tensor) -> Tensor:
    # On CPU, the order of a sum over a whole batch could depend on the number of pictures.
    return torch.stack([each.sum() for each in torch.where(counted[..., None], losses, 0.0)])


def _rows(kind: int, picture: Tensor, labels: Tensor, boxes: Tensor, last: Tensor) -> Tensor:
    rows = torch.empty(len(boxes), COLUMNS, dtype=torch.float64, device=boxes.device)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 7] = kind, picture, labels, last
    rows[:, 3:7] = boxes
    return rows


def detection_of(task: Task, name: str, key: str = "model") -> Detection:
    """Return the task if it is detection; if not, raise a ConfigError about `key=name`."""
    data = "with boxes: data=fashion_scenes, data=voc or data=coco"
    return only_for(Detection, task, key, name, "detection", data)
