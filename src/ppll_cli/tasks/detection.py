"""Object detection: boxes and their classes, for each picture.

Legend: B batch, N boxes of a picture at most, A anchors of a picture, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ppll_cli.values import ValueSpec

BOXES = "boxes"
"""Left, top, right and bottom of each box, in pixels of the batch's images, float32 [B, N, 4]."""

LABELS = "labels"
"""Classes of the boxes, from 0, int64 [B, N]."""

IGNORED = "ignored"
"""Boxes that are neither learnt nor asked for: crowds (COCO), difficult ones (VOC), bool [B, N]."""

COUNT = "count"
"""How many boxes a picture has, int64 [B]; what stands behind them in the others is of no account."""

NUMBER = "number"
"""Which picture of its split it is, int64 [B]."""

FRAME = "frame"
"""Height and width of the picture inside of the batch's image (pixels; the rest is padding), and by
what its own height and width were multiplied to be that, float32 [B, 4]."""


@dataclass(frozen=True)
class Detection:
    """Predictions are anchors with deltas and logits; the metric is COCO's average precision.

    Attributes:
        classes: Their names.
        boxes: N.
        height: Of the largest images, a multiple of 32 (pixels).
        width: Likewise.
        anchor: Side of the smallest anchors (pixels), those of the maps of stride 8.
        crowds: Whether ignored boxes are crowds, as COCO counts them, or single difficult objects.
        metric: Its name.
    """

    classes: tuple[str, ...]
    boxes: int
    height: int
    width: int
    anchor: int
    crowds: bool = False
    metric: str = "ap"

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
