"""Computes the detection loss of one picture at a time, from torchvision's parts.

The tests compare the program's loss with it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.models.detection._utils import encode_boxes
from torchvision.ops import box_iou, sigmoid_focal_loss

from ppll_cli.tasks import detection as d


def loss(task: d.Detection, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the pictures' losses."""
    rows = prediction.float()
    losses = [
        _loss(rows[n], *(values[name][n] for name in (d.BOXES, d.LABELS, d.IGNORED, d.COUNT)))
        for n in range(len(prediction))
    ]
    return torch.stack(losses).mean()


def _loss(row: Tensor, boxes: Tensor, labels: Tensor, ignored: Tensor, count: Tensor) -> Tensor:
    anchors, deltas, logits = row[:, 1:5], row[:, 5:9], row[:, 9:]
    wanted = (torch.arange(len(boxes)) < count) & ~ignored
    which = _matched(boxes, wanted, anchors)
    found, given = which >= 0, which.clamp(min=0)
    classes = (labels[given][:, None] == torch.arange(logits.shape[1])) & found[:, None]
    focal = sigmoid_focal_loss(logits, classes.to(logits.dtype))
    focal = torch.where((found | (which == -1))[:, None], focal, 0.0).sum()
    right = torch.where(found[:, None], boxes[given], anchors)
    wanted_deltas = encode_boxes(right, anchors, torch.ones(4))
    distance = torch.where(found[:, None], (deltas - wanted_deltas).abs(), 0.0).sum()
    return (focal + distance) / found.sum().clamp(min=1)


def _matched(boxes: Tensor, wanted: Tensor, anchors: Tensor) -> Tensor:
    overlaps = torch.where(wanted[:, None], box_iou(boxes, anchors), -1.0)
    most, which = overlaps.max(dim=0)
    best = overlaps.amax(dim=1, keepdim=True)
    kept = ((overlaps == best) & (best > 0)).any(dim=0)
    sure = torch.where(most < 0.4, -1, -2)
    return torch.where(kept | (most >= 0.5), which, sure)
