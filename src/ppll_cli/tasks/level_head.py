"""A detection head for the levels of one map: what a module is trained through on its own levels.

Legend: B batch, W width (channels) of the head, A anchors of a picture, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.tasks.pyramid import LEVELS, STRIDES, Anchors, HeadStyle, Maps

CONVOLUTIONS = 2
"""Of each branch, before the one that predicts; the model's head has four."""


class LevelHead(nn.Module):
    """Finds boxes on the pyramid levels of its map's stride, and on no others.

    A map of stride 8 is level P3 and one of stride 16 is level P4. A map of stride 32 is P5, and
    strided 3x3 convolutions make P6 and P7 of it. A 1x1 convolution and ReLU take the map to the
    width of the model's head. Two branches follow, for classes and for boxes: two 3x3 convolutions
    with ReLU, and one that predicts. The layers, their initial weights and which anchors are
    trained are as in the code of MAN++'s authors (arXiv 2507.16279).

    Ours: the width, and norms between the convolutions, are those of the model's head. A map that
    is finer than stride 8 is averaged down to it, as banked maps are to the stride of the map.

    Args:
        maps: The map, and banked ones of earlier modules.
        style: Of the model's head.
        classes: C.
        anchor: Side of the smallest anchors of the whole pyramid (pixels).
        fusion: `concatenate` joins banked maps with the map; `add` sums those that have the same
            number of channels.

    Attributes:
        stride: Of the finest level.
        levels: Numbers of the levels; 0 is P3.
        joined: Which of the maps are joined.
    """

    def __init__(
        self,
        maps: Maps,
        style: HeadStyle,
        classes: int,
        anchor: int,
        fusion: str = "concatenate",
    ) -> None:
        super().__init__()
        self.strides, self.fusion = [stride for stride, _ in maps], fusion
        self.stride = max(STRIDES[0], maps[0][0])
        first = STRIDES.index(self.stride)
        self.levels = range(first, LEVELS if self.stride == STRIDES[-1] else first + 1)
        channels = maps[0][1]
        self.joined = [n for n, (stride, _) in enumerate(maps) if stride <= self.stride]
        if fusion == "add":
            self.joined = [n for n in self.joined if maps[n][1] == channels]
        else:
            channels = sum(maps[n][1] for n in self.joined)
        width = style.width
        self.project = nn.Conv2d(channels, width, 1)
        self.coarser = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in self.levels[1:]
        )
        for convolution in (self.project, *self.coarser):
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)
        self.head = style.branches(classes)
        for branch in (self.head.classification_head, self.head.regression_head):
            branch.conv = branch.conv[:CONVOLUTIONS]
        self.anchors = Anchors(anchor, self.levels)

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """A map, and banked ones, [B, channels, H, W] each, to a prediction [B, A, 9 + C]."""
        given = (x, *bank)
        same = [F.avg_pool2d(given[n], self.stride // self.strides[n]) for n in self.joined]
        joined = torch.stack(same).sum(dim=0) if self.fusion == "add" else torch.cat(same, dim=1)
        levels = [F.relu(self.project(joined))]
        for convolution in self.coarser:
            levels.append(convolution(F.relu(levels[-1])))
        found = self.head(levels)
        prediction: Tensor = self.anchors(levels, found["bbox_regression"], found["cls_logits"])
        return prediction
