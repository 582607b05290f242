"""Matches anchors to objects in training, and finds the detections of a picture.

Legend: N boxes of a picture, A anchors of a picture, C classes, D detections.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

BACKGROUND = -1
"""Result of `matched` for an anchor that is trained as background."""

BETWEEN = -2
"""Result of `matched` for an anchor that the loss leaves out."""

FOUND_FROM = 0.5
"""Smallest intersection over union at which an anchor is matched to a box (arXiv 1708.02002)."""

BACKGROUND_BELOW = 0.4
"""An anchor that is not matched to a box is background if its intersection over union with each box
is below this (arXiv 1708.02002).
"""

SCORES_ABOVE = 0.05
"""Detections must have a score above this value (torchvision's choice)."""

CANDIDATES = 1000
"""Largest number of detections on each pyramid level before overlapping ones are dropped
(torchvision's choice).
"""

OVERLAP = 0.5
"""If two detections of a class have a larger intersection over union, the one with the lower score
is dropped.
"""

MOST = 100
"""Largest number of detections of a picture; COCO's metric uses no more."""


class Detections(NamedTuple):
    """The objects found in a picture, best first."""

    boxes: Tensor  # left, top, right and bottom, float32 [D, 4]
    scores: Tensor  # in [0, 1], float32 [D]
    labels: Tensor  # classes, int64 [D]


@torch.no_grad()
def matched(boxes: Tensor, wanted: Tensor, anchors: Tensor, forced: bool = True) -> Tensor:
    """Match each anchor to a box, to background or to nothing, like torchvision's Matcher.

    An anchor is matched to the box that it overlaps most, if their intersection over union is at
    least `FOUND_FROM`.

    Args:
        boxes: The objects' boxes (left, top, right, bottom), float [..., N, 4]; `...` is the batch
            dimension or empty.
        wanted: Which boxes may be matched, bool [..., N].
        anchors: The anchors, in the same units as the boxes, float [..., A, 4].
        forced: Whether an anchor below `FOUND_FROM` is matched too, if it overlaps one of the
            boxes, and no other anchor overlaps that box more.

    Returns:
        For each anchor, int64 [..., A]: the index of its box; or `BACKGROUND`; or `BETWEEN` if the
            loss leaves out the anchor.
    """
    # No shape depends on values, because the loss is also computed on the meta device.
    overlaps = torch.where(wanted[..., None], _overlaps(boxes, anchors), -1.0)
    most, which = overlaps.max(dim=-2)
    found = most >= FOUND_FROM
    if forced:
        best = overlaps.amax(dim=-1, keepdim=True)
        found = found | ((overlaps == best) & (best > 0)).any(dim=-2)
    sure = torch.where(most < BACKGROUND_BELOW, BACKGROUND, BETWEEN)
    return torch.where(found, which, sure)


def _overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    # In-place operations save memory.
    first = torch.maximum(boxes[..., None, :2], anchors[..., None, :, :2])
    sides = torch.minimum(boxes[..., None, 2:], anchors[..., None, :, 2:]).sub_(first).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]
    return shared.div_(_area(boxes)[..., None] + _area(anchors)[..., None, :] - shared)


def _area(boxes: Tensor) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0] * sides[..., 1]


def offsets(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the deltas from anchors to boxes, as torchvision's BoxCoder does.

    Boxes, anchors and deltas are float [..., 4]. The four deltas of an anchor are: the centre's
    shift in x, divided by the anchor's width; the centre's shift in y, divided by the anchor's
    height; log(box width / anchor width); and log(box height / anchor height).
    """
    size, box_size = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    centre = anchors[..., :2] + 0.5 * size
    box_centre = boxes[..., :2] + 0.5 * box_size
    return torch.cat(((box_centre - centre) / size, torch.log(box_size / size)), dim=-1)


def best_detections(
    levels: Tensor, anchors: Tensor, deltas: Tensor, logits: Tensor, height: float, width: float
) -> Detections:
    """Return the detections of one picture, as torchvision's RetinaNet finds them.

    Args:
        levels: Pyramid level of each anchor, float [A], in ascending order.
        anchors: The anchors (left, top, right, bottom) in pixels, float [A, 4].
        deltas: The model's prediction of `offsets` for each anchor, float [A, 4].
        logits: The model's logits of each class, float [A, C].
        height: Height of the picture in pixels. Boxes are clipped to the picture.
        width: Width of the picture in pixels.
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
