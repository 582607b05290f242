"""Heads that find boxes in maps of several strides: RetinaNet's, and those of local learning.

Legend: B batch, W width (channels) of a pyramid, A anchors of a picture, C classes. A map's stride
is how many pixels of the image a step in it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

STRIDES = (8, 16, 32)
"""Of the maps that a pyramid is made of; two more, of 64 and 128, are made of it."""

LEVELS = 5
"""Of a pyramid, P3 to P7: maps of stride 8, 16, 32, 64 and 128."""

ANCHORS = 9
"""At each place of a map: three sizes, in three shapes."""

_COLUMNS = 9
"""Before the logits: level, anchor, deltas."""


def split_prediction(prediction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Level [..., A], anchors and deltas [..., A, 4] and logits [..., A, C].

    Args:
        prediction: [..., A, 9 + C], where `...` is nothing or the pictures of a batch.
    """
    anchors, deltas = prediction[..., 1:5], prediction[..., 5:_COLUMNS]
    return prediction[..., 0], anchors, deltas, prediction[..., _COLUMNS:]


class Anchors(nn.Module):
    """Puts anchors before what was predicted for them, so that a prediction explains itself.

    Args:
        smallest: Side of the smallest anchors (pixels), those of the maps of stride 8; it doubles
            with the stride.
        levels: Which levels of a pyramid the maps are, 0 to 4.
    """

    cells: Tensor

    def __init__(self, smallest: int, levels: Sequence[int] = range(LEVELS)) -> None:
        super().__init__()
        self.levels = levels
        # Whole numbers of pixels, as torchvision has them.
        sizes = [
            [int(smallest * 2**level * 2 ** (third / 3)) for third in range(3)] for level in levels
        ]
        shapes = ((0.5, 1.0, 2.0),) * len(levels)
        self.generator = AnchorGenerator(tuple(map(tuple, sizes)), shapes)
        # A buffer, and plain numbers for steps: nothing is copied to a device at each batch.
        self.register_buffer("cells", torch.stack(self.generator.cell_anchors), persistent=False)

    def forward(self, maps: Sequence[Tensor], deltas: Tensor, logits: Tensor) -> Tensor:
        """A prediction.

        Args:
            maps: Of the strides of the levels, the finest first.
            deltas: [B, A, 4].
            logits: [B, A, C].

        Returns:
            float32 [B, A, 9 + C].
        """
        grids = [list(map_.shape[2:]) for map_ in maps]
        image = [STRIDES[0] * 2 ** self.levels[0] * side for side in grids[0]]
        steps = [[image[0] // height, image[1] // width] for height, width in grids]
        self.generator.cell_anchors = list(self.cells.to(logits.device))
        anchors = self.generator.grid_anchors(grids, steps)
        levels = [
            each.new_full((len(each), 1), level)
            for level, each in zip(self.levels, anchors, strict=True)
        ]
        fixed = torch.cat((torch.cat(levels), torch.cat(anchors)), dim=1)
        fixed = fixed.expand(len(logits), -1, -1)
        return torch.cat((fixed, deltas.float(), logits.float()), dim=2)


@dataclass(frozen=True)
class HeadStyle:
    """What a model's head has in common with heads that local learning makes.

    Attributes:
        width: W.
        groups: Of the norms between the convolutions for classes and boxes; 0: there are none.
    """

    width: int
    groups: int = 0

    def branches(self, classes: int) -> RetinaNetHead:
        """Two rows of convolutions that all maps of a pyramid share, for classes and for boxes."""
        norm = partial(nn.GroupNorm, self.groups) if self.groups else None
        return RetinaNetHead(self.width, ANCHORS, classes, norm_layer=norm)


class PyramidHead(nn.Module):
    """RetinaNet's head (arXiv 1708.02002), of torchvision's parts.

    A feature pyramid, and on each of its maps two rows of convolutions, for classes and for boxes.

    A map may be missing. Finer ones than all that are given come from the way down from coarser
    ones alone; coarser ones are the coarsest that is given with every second row and column left
    out (both ours; only local learning needs them).

    Args:
        channels: Of the maps that are given, by stride: at least one of `STRIDES`.
        width: W.
        classes: C.
        anchor: Side of the smallest anchors (pixels).
        groups: Of the norms between the convolutions for classes and boxes; 0: there are none.
    """

    def __init__(
        self, channels: Mapping[int, int], width: int, classes: int, anchor: int, groups: int = 0
    ) -> None:
        super().__init__()
        self.channels = dict(channels)
        self.style = HeadStyle(width, groups)
        self._like = partial(
            PyramidHead, width=width, classes=classes, anchor=anchor, groups=groups
        )
        coarsest = max(channels)
        wide = [channels.get(stride, channels[coarsest]) for stride in STRIDES]
        self.fpn = FeaturePyramidNetwork(wide, width, LastLevelP6P7(width, width))
        for number, stride in enumerate(STRIDES):
            if stride not in channels and stride < coarsest:
                self.fpn.inner_blocks[number] = nn.Identity()
        self.head = self.style.branches(classes)
        self.anchors = Anchors(anchor)

    def over(self, channels: Mapping[int, int]) -> "PyramidHead":
        """A new head like this one, for other maps."""
        return self._like(channels)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps [B, channels, H, W], the coarsest first, to a prediction [B, A, 9 + C]."""
        given = dict(zip(sorted(self.channels, reverse=True), maps, strict=True))
        coarsest = max(given)
        wide: dict[str, Tensor] = {}
        for stride in STRIDES:
            x = given[coarsest]
            if stride > coarsest:
                x = _thinned(x, stride // coarsest)
            elif stride in given:
                x = given[stride]
            else:
                size = (coarsest // stride * x.shape[2], coarsest // stride * x.shape[3])
                x = x.new_zeros(len(x), self.style.width, *size)
            wide[str(stride)] = x
        levels = list(self.fpn(wide).values())
        found = self.head(levels)
        prediction: Tensor = self.anchors(levels, found["bbox_regression"], found["cls_logits"])
        return prediction


def _thinned(x: Tensor, step: int) -> Tensor:
    """Every `step`-th row and column of a map."""
    return F.max_pool2d(x, 1, step)


class SmallestHead(nn.Module):
    """One 3x3 convolution for classes and boxes, on a map pooled to each stride of a pyramid.

    A map that is too coarse has its pixels repeated.

    Args:
        channels: Of the map.
        stride: Of the map.
        classes: C.
        anchor: Side of the smallest anchors (pixels).
    """

    def __init__(self, channels: int, stride: int, classes: int, anchor: int) -> None:
        super().__init__()
        self.stride = stride
        self.predict = nn.Conv2d(channels, ANCHORS * (4 + classes), 3, padding=1)
        # As RetinaNet begins: few anchors have an object.
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.constant_(self.predict.bias, 0)  # type: ignore[arg-type]
        with torch.no_grad():
            self.predict.bias.view(ANCHORS, -1)[:, 4:] = RARE  # type: ignore[union-attr]
        self.anchors = Anchors(anchor)

    def forward(self, x: Tensor) -> Tensor:
        """A map [B, channels, H, W] to a prediction [B, A, 9 + C]."""
        first = STRIDES[0]
        if self.stride > first:
            maps = [F.interpolate(x, scale_factor=self.stride // first, mode="nearest")]
        else:
            maps = [F.avg_pool2d(x, first // self.stride)]
        for _ in range(LEVELS - 1):
            maps.append(F.avg_pool2d(maps[-1], 2, ceil_mode=True))
        found = []
        for each in maps:
            y = self.predict(each).permute(0, 2, 3, 1)
            found.append(y.reshape(len(y), -1, y.shape[3] // ANCHORS))
        both = torch.cat(found, dim=1)
        prediction: Tensor = self.anchors(maps, both[:, :, :4], both[:, :, 4:])
        return prediction


RARE = -4.59512
"""The logit of 0.01, with which RetinaNet's classes begin."""

Maps = Sequence[tuple[int, int]]
"""Stride and channels of each."""


class BankedPyramid(nn.Module):
    """A Simple Local Module for detection, with a feature bank (arXiv 2406.00446).

    Our reading: the pyramid of a module's auxiliary network is made of the maps that earlier
    modules made, without gradient, of the module's own, and of those that copies of later units
    make of that. Of the module's own way the last map of each stride is taken, as in the model.
    Where there are several of one stride, `concatenate` joins them, and the pyramid's 1x1
    convolution takes them to its width; `add` sums those of the same number of channels.

    Args:
        units: Copies of later units, in order.
        head: A copy of the model's head; its like is made for the maps that there are.
        own: The module's map, and what each copy makes of it.
        banked: Of earlier modules.
        fusion: `concatenate` or `add`.

    Attributes:
        plan: By stride, which of the banked maps and then the own ones are joined.
    """

    def __init__(
        self, units: Sequence[nn.Module], head: PyramidHead, own: Maps, banked: Maps, fusion: str
    ) -> None:
        super().__init__()
        self.units, self.fusion = nn.ModuleList(units), fusion
        maps = [*banked, *own]
        last = {stride: len(banked) + number for number, (stride, _) in enumerate(own)}
        self.plan: dict[int, list[int]] = {}
        channels = {}
        for stride in STRIDES:
            chosen = [number for number, (at, _) in enumerate(banked) if at == stride]
            chosen += [last[stride]] if stride in last else []
            wide = [maps[number][1] for number in chosen]
            if fusion == "add":
                chosen = [number for number in chosen if maps[number][1] == wide[-1]]
            if chosen:
                self.plan[stride] = chosen
                channels[stride] = wide[-1] if fusion == "add" else sum(wide)
        self.head = head.over(channels)

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """The module's map, and banked ones, to a prediction [B, A, 9 + C]."""
        maps = [*bank, x]
        for unit in self.units:
            maps.append(unit(maps[-1]))
        joined = {}
        for stride, chosen in self.plan.items():
            same = [maps[number] for number in chosen]
            add = self.fusion == "add"
            joined[stride] = torch.stack(same).sum(dim=0) if add else torch.cat(same, dim=1)
        prediction: Tensor = self.head(*(joined[at] for at in sorted(joined, reverse=True)))
        return prediction
