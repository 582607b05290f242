"""Heads that find boxes in maps of several strides, for RetinaNet and for local learning.

Legend: B batch, W width (channels) of a pyramid, A anchors of a picture, C classes. The stride of a
map is the number of image pixels from one of its positions to the next.
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
"""Strides of the maps from which a pyramid is made; it adds maps of stride 64 and 128."""

LEVELS = 5
"""Number of levels of a pyramid, P3 to P7: maps of stride 8, 16, 32, 64 and 128."""

ANCHORS = 9
"""Number of anchors at each position of a map: three sizes, each in three shapes."""

_COLUMNS = 9
"""Number of columns of a prediction before the logits: 1 level, 4 of the anchor, 4 deltas."""


def split_prediction(prediction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split a prediction, [..., A, 9 + C], where `...` is empty or the batch dimension.

    The parts are levels [..., A], anchors and deltas [..., A, 4], and logits [..., A, C].
    """
    anchors, deltas = prediction[..., 1:5], prediction[..., 5:_COLUMNS]
    return prediction[..., 0], anchors, deltas, prediction[..., _COLUMNS:]


class Anchors(nn.Module):
    """Adds the anchors to a detector's outputs, so that a prediction contains its anchors.

    Args:
        smallest: Side of the smallest anchors on a map of stride 8, in pixels. On other maps,
            anchors are larger in proportion to the stride.
        levels: Level of each map in the pyramid, from 0 for stride 8 to 4 for stride 128.
    """

    cells: Tensor

    def __init__(self, smallest: int, levels: Sequence[int] = range(LEVELS)) -> None:
        super().__init__()
        self.levels = levels
        # Sizes are rounded down to whole pixels, as in torchvision.
        sizes = [
            [int(smallest * 2**level * 2 ** (third / 3)) for third in range(3)] for level in levels
        ]
        shapes = ((0.5, 1.0, 2.0),) * len(levels)
        self.generator = AnchorGenerator(tuple(map(tuple, sizes)), shapes)
        # This buffer moves to the device with the module, and `steps` in `forward` has plain
        # numbers. So no batch needs a copy from the host.
        self.register_buffer("cells", torch.stack(self.generator.cell_anchors), persistent=False)

    def forward(self, maps: Sequence[Tensor], deltas: Tensor, logits: Tensor) -> Tensor:
        """Return a prediction, float32 [B, A, 9 + C], from deltas [B, A, 4] and logits [B, A, C].

        Each row has an anchor's level (1 column), its box (4), its deltas (4) and its logits (C).
        `maps` has one map for each level, finest first. Only their sizes are used.
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
    """Settings that a detector's own head and its local heads have in common."""

    width: int  # number of channels, W
    classes: int  # number of classes, C
    anchor: int  # side in pixels of the smallest anchors of the whole pyramid
    groups: int = 0  # number of groups of each GroupNorm in the branches; 0 for no norms

    def branches(self) -> RetinaNetHead:
        """Return two branches of convolutions, for classes and boxes, which all levels share."""
        norm = partial(nn.GroupNorm, self.groups) if self.groups else None
        return RetinaNetHead(self.width, ANCHORS, self.classes, norm_layer=norm)


class PyramidHead(nn.Module):
    """RetinaNet's head (arXiv 1708.02002), built from torchvision's parts.

    A feature pyramid makes a map for each level. On all these maps, the same two branches of
    convolutions predict classes and boxes.

    In local learning, input maps of some strides may be missing; the paper has no such case. If the
    missing map is finer than the coarsest input map, its level is computed only from coarser
    levels. If it is coarser, it is made from the coarsest input map by leaving out rows and
    columns.

    Args:
        channels: Number of channels of each input map, by the map's stride (one of `STRIDES`).
        style: Width and further settings of the head.
    """

    def __init__(self, channels: Mapping[int, int], style: HeadStyle) -> None:
        super().__init__()
        self.channels, self.style = dict(channels), style
        coarsest = max(channels)
        wide = [channels.get(stride, channels[coarsest]) for stride in STRIDES]
        self.fpn = FeaturePyramidNetwork(wide, style.width, LastLevelP6P7(style.width, style.width))
        for number, stride in enumerate(STRIDES):
            if stride not in channels and stride < coarsest:
                self.fpn.inner_blocks[number] = nn.Identity()
        self.head = style.branches()
        self.anchors = Anchors(style.anchor)

    def forward(self, *maps: Tensor) -> Tensor:
        """Return the prediction [B, A, 9 + C] for maps [B, channels, H, W], coarsest first."""
        given = dict(zip(sorted(self.channels, reverse=True), maps, strict=True))
        coarsest = max(given)
        wide: dict[str, Tensor] = {}
        for stride in STRIDES:
            x = given[coarsest]
            if stride > coarsest:
                x = F.max_pool2d(x, 1, stride // coarsest)  # leaves out rows and columns
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


class SmallestHead(nn.Module):
    """Predicts classes and boxes from one map by a 3x3 convolution, on all levels of a pyramid.

    The map is pooled to the stride of each level. On levels finer than the map, the map's pixels
    are repeated.

    Args:
        channels: Number of channels of the map.
        stride: Stride of the map, a power of 2.
        classes: Number of classes.
        anchor: Side of the smallest anchors of the whole pyramid, in pixels.
    """

    def __init__(self, channels: int, stride: int, classes: int, anchor: int) -> None:
        super().__init__()
        self.stride = stride
        self.predict = nn.Conv2d(channels, ANCHORS * (4 + classes), 3, padding=1)
        # As in RetinaNet, classes begin with a small probability: few anchors have an object.
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.constant_(self.predict.bias, 0)  # type: ignore[arg-type]
        with torch.no_grad():
            self.predict.bias.view(ANCHORS, -1)[:, 4:] = RARE  # type: ignore[union-attr]
        self.anchors = Anchors(anchor)

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction [B, A, 9 + C] for a map [B, channels, H, W]."""
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
"""The logit of 0.01, RetinaNet's initial probability of a class."""
