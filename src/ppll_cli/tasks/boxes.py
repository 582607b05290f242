"""From anchors to boxes: which of them stand for which object, and which are an answer.

Legend: N boxes of a picture, A anchors of a picture, C classes, D detections.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

BACKGROUND = -1
BETWEEN = -2

FOUND_FROM = 0.5
BACKGROUND_BELOW = 0.4
"""By how much anchor and box overlap, intersection over union (RetinaNet, arXiv 1708.02002)."""

SCORES_ABOVE = 0.05
CANDIDATES = 1000
OVERLAP = 0.5
MOST = 100
"""Detections of a picture, as many as COCO counts. What is above is torchvision's choice, a number
of candidates for each stride, and the overlap from which the lower score gives way."""


class Detections(NamedTuple):
    """What was found in a picture, best first.

    Attributes:
        boxes: Left, top, right and bottom, float32 [D, 4].
        scores: In [0, 1], float32 [D].
        labels: Classes, int64 [D].
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def matched(boxes: Tensor, wanted: Tensor, anchors: Tensor, forced: bool = True) -> Tensor:
    """Which box each anchor stands for.

    As torchvision's Matcher with low-quality matches: an anchor is given the box that it overlaps
    most if that is by `FOUND_FROM`; besides, the anchors that overlap a box more than all others
    do are given the box that they overlap most, however little that is, if `forced`. Here no shape
    depends on a value.

    Args:
        boxes: float [..., N, 4], where `...` is nothing or the pictures of a batch.
        wanted: Which of them count, bool [..., N].
        anchors: float [..., A, 4].
        forced: Whether each box is given anchors, even if all overlap it by less than `FOUND_FROM`.

    Returns:
        Numbers of boxes, `BACKGROUND`, or `BETWEEN` where neither is sure; int64 [..., A].
    """
    overlaps = torch.where(wanted[..., None], _overlaps(boxes, anchors), -1.0)
    most, which = overlaps.max(dim=-2)
    found = most >= FOUND_FROM
    if forced:
        best = overlaps.amax(dim=-1, keepdim=True)
        found = found | ((overlaps == best) & (best > 0)).any(dim=-2)
    sure = torch.where(most < BACKGROUND_BELOW, BACKGROUND, BETWEEN)
    return torch.where(found, which, sure)


def _overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Intersection over union, [..., N, A]; in place, because these are a loss's largest tables."""
    first = torch.maximum(boxes[..., None, :2], anchors[..., None, :, :2])
    sides = torch.minimum(boxes[..., None, 2:], anchors[..., None, :, 2:]).sub_(first).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]
    return shared.div_(_area(boxes)[..., None] + _area(anchors)[..., None, :] - shared)


def _area(boxes: Tensor) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0] * sides[..., 1]


def offsets(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What an anchor's deltas are to be so that it becomes a box, as torchvision's BoxCoder has it.

    Args:
        boxes: float [..., 4].
        anchors: float [..., 4].

    Returns:
        By how much of the anchor's width and height the centre moves, and the logarithm of how
        many times as wide and high the box is; float [..., 4].
    """
    size, box_size = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    centre = anchors[..., :2] + 0.5 * size
    box_centre = boxes[..., :2] + 0.5 * box_size
    return torch.cat(((box_centre - centre) / size, torch.log(box_size / size)), dim=-1)


def best_detections(
    levels: Tensor, anchors: Tensor, deltas: Tensor, logits: Tensor, height: float, width: float
) -> Detections:
    """The answer for one picture, as torchvision's RetinaNet finds it.

    Args:
        levels: Which map an anchor is of, [A].
        anchors: [A, 4].
        deltas: [A, 4].
        logits: [A, C].
        height: Of the picture; boxes end at its border.
        width: Of the picture (pixels).
    """
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    scores = logits.sigmoid()
    boxes, kept, labels = [], [], []
    for level in levels.unique():  # type: ignore[no-untyped-call]
        start = int((levels < level).sum())
        here = scores[levels == level].flatten()
        candidates = (here > SCORES_ABOVE).nonzero()[:, 0]
        best, order = here[candidates].topk(min(CANDIDATES, len(candidates)))
        candidates = candidates[order]
        which = start + candidates // logits.shape[1]
        found = coder.decode_single(deltas[which], anchors[which])
        boxes.append(clip_boxes_to_image(found, (height, width)))
        kept.append(best)
        labels.append(candidates % logits.shape[1])
    all_boxes, all_scores, all_labels = map(torch.cat, (boxes, kept, labels))
    order = batched_nms(all_boxes, all_scores, all_labels, OVERLAP)[:MOST]
    return Detections(all_boxes[order], all_scores[order], all_labels[order])
