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
"""Number of convolutions in each branch before the convolution that predicts. The model's head has
four."""


def fusible(maps: Maps, chosen: list[int], own: int, fusion: str) -> tuple[list[int], int]:
    """Return the indices of the maps that a fusion uses, and the number of channels of the result.

    Args:
        maps: Stride and channels of each map.
        chosen: Indices of the chosen maps.
        own: Index of the map with which the others are fused.
        fusion: `concatenate` uses all chosen maps; `add` uses only those that have as many channels
            as the map `own`.
    """
    if fusion == "add":
        channels = maps[own][1]
        return [number for number in chosen if maps[number][1] == channels], channels
    return chosen, sum(maps[number][1] for number in chosen)


class LevelHead(nn.Module):
    """A head that finds boxes only on those pyramid levels that fit the stride of its map.

    A map of stride 8 or finer has level P3, a map of stride 16 has level P4, and a map of stride 32
    has the levels P5, P6 and P7. Banked maps are fused with the map, except those that are coarser
    than the head's finest level.

    The layers and their initial weights follow the code of MAN++'s authors (arXiv 2507.16279). The
    width and the norms are those of the model's own head (our choice).

    Args:
        maps: Stride and channels of the module's map (stride at most 32), then of each banked map.
        style: Settings of the model's own head.
        fusion: `concatenate` concatenates the maps. `add` sums the module's map and those banked
            maps that have the same number of channels.

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
        # Our choice: finer maps are averaged to the stride of the head.
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
    # As in MAN++'s code, boxes that fit none of the module's levels are left to other modules.
    forced = False

    def smallest_head(self, shape: Shape) -> LevelHead:
        """Return a `LevelHead` for a map of this shape, [C, H, W].

        Raises:
            ConfigError: The map has no stride (see `Detection.stride`), or a stride above 32.
        """
        return self.level_head([(self.stride("local.detection_head", "level", shape), shape[0])])

    def level_head(self, maps: Maps, fusion: str = "concatenate") -> LevelHead:
        """Return a `LevelHead` for these maps, of which the first is the module's own.

        Raises:
            ConfigError: The stride of the module's own map is above 32.
        """
        if maps[0][0] > STRIDES[-1]:
            problem = f"has levels for maps of stride 8, 16 and 32, not {maps[0][0]}"
            key = "local.detection_head"
            raise ConfigError(key, "level", problem, f"use {key}=pyramid")
        return LevelHead(maps, self.style, fusion)


def with_levels(task: Detection, style: HeadStyle) -> LevelDetection:
    """Return a `LevelDetection` with the settings of `task`. `style` has those of the model's head.

    The result is also an instance of the task's own class.
    """
    bases = LevelDetection, type(task)
    kind = make_dataclass(LevelDetection.__name__, [], bases=bases, frozen=True, kw_only=True)
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    made: LevelDetection = kind(**values, style=style)
    return made
