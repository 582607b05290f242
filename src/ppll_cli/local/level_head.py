"""Trains a detector's modules only on the pyramid levels that fit the stride of their own maps.

Legend: B batch, W width (channels) of the head, A anchors of a picture, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.bank import fused
from ppll_cli.tasks.detection import Detection
from ppll_cli.tasks.pyramid import LEVELS, STRIDES, Anchors, HeadStyle
from ppll_cli.tasks.task import Shape

Maps = Sequence[tuple[int, int]]
"""For each of several maps, its stride and its number of channels."""

CONVOLUTIONS = 2
"""Number of convolutions in each branch before the predicting one. The model's head has four."""


def fusible(maps: Maps, chosen: list[int], own: int, fusion: str) -> tuple[list[int], int]:
    """Return the indices of the maps to fuse, and the number of channels after the fusion.

    `own` and the elements of `chosen` are indices in `maps`. The fusion `concatenate` uses all
    chosen maps; `add` uses only those that have as many channels as `maps[own]`.
    """
    if fusion == "add":
        channels = maps[own][1]
        return [number for number in chosen if maps[number][1] == channels], channels
    return chosen, sum(maps[number][1] for number in chosen)


class LevelHead(nn.Module):
    """A head that finds boxes only on the pyramid levels for the stride of its map.

    For a map of stride 8 this is level P3, and for stride 16 level P4. For stride 32 the levels are
    P5, P6 and P7; strided 3x3 convolutions compute P6 from P5, and P7 from P6. A 1x1 convolution
    and ReLU convert the map to the width of the model's head. Two branches follow, for classes and
    for boxes, each with two 3x3 convolutions with ReLU, and a convolution that predicts. The
    layers, their initial weights and the choice of trained anchors follow the code of MAN++'s
    authors (arXiv 2507.16279).

    Our choice: the width and the norms between the convolutions are as in the model's head. Maps
    finer than stride 8 are averaged to stride 8. Banked maps are averaged to the stride of the map;
    coarser banked maps are not used. The fusion `concatenate` concatenates the map and banked maps.
    The fusion `add` sums the map and only the banked maps that have as many channels as the map.

    `maps` has the stride and channels of the module's map, then of banked maps. `style` has the
    settings of the model's head.

    Attributes:
        stride: Stride of the finest level.
        levels: Indices of the pyramid levels; 0 is P3.
        joined: Indices in `maps` of the maps that are fused.
    """

    def __init__(self, maps: Maps, style: HeadStyle, fusion: str = "concatenate") -> None:
        super().__init__()
        self.strides, self.fusion = [stride for stride, _ in maps], fusion
        self.stride = max(STRIDES[0], maps[0][0])
        first = STRIDES.index(self.stride)
        self.levels = range(first, LEVELS if self.stride == STRIDES[-1] else first + 1)
        fine = [n for n, (stride, _) in enumerate(maps) if stride <= self.stride]
        self.joined, channels = fusible(maps, fine, 0, fusion)
        width = style.width
        self.project = nn.Conv2d(channels, width, 1)
        self.coarser = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in self.levels[1:]
        )
        for convolution in (self.project, *self.coarser):
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)
        self.head = style.branches()
        for branch in (self.head.classification_head, self.head.regression_head):
            branch.conv = branch.conv[:CONVOLUTIONS]
        self.anchors = Anchors(style.anchor, self.levels)

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Return the prediction, float32 [B, A, 9 + C] (see `Anchors.forward`).

        `x` is the module's map, and `bank` has the banked maps: [B, channels, H, W].
        """
        given = (x, *bank)
        same = [F.avg_pool2d(given[n], self.stride // self.strides[n]) for n in self.joined]
        levels = [F.relu(self.project(fused(same, self.fusion)))]
        for convolution in self.coarser:
            levels.append(convolution(F.relu(levels[-1])))
        found = self.head(levels)
        prediction: Tensor = self.anchors(levels, found["bbox_regression"], found["cls_logits"])
        return prediction


@dataclass(frozen=True, kw_only=True)
class LevelDetection(Detection):
    """Detection in which each module trains only on the levels that fit the stride of its map."""

    style: HeadStyle  # settings of the model's head
    forced = False  # boxes that fit none of the module's levels are left to other modules

    def smallest_head(self, shape: Shape) -> LevelHead:
        """Return a `LevelHead` for a map of this shape."""
        return self.level_head([(self.stride("local.detection_head", "level", shape), shape[0])])

    def level_head(self, maps: Maps, fusion: str = "concatenate") -> LevelHead:
        """Return a head for the pyramid levels of the first map; refuse a stride above 32."""
        if maps[0][0] > STRIDES[-1]:
            problem = f"has levels for maps of stride 8, 16 and 32, not {maps[0][0]}"
            key = "local.detection_head"
            raise ConfigError(key, "level", problem, f"use {key}=pyramid")
        return LevelHead(maps, self.style, fusion)


def with_levels(task: Detection, style: HeadStyle) -> LevelDetection:
    """Convert a task to a `LevelDetection` that also inherits from the task's class."""
    bases = LevelDetection, type(task)
    kind = make_dataclass(LevelDetection.__name__, [], bases=bases, frozen=True, kw_only=True)
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    made: LevelDetection = kind(**values, style=style)
    return made
