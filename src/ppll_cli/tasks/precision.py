"""Average precision of detections, as COCO and VOC define it.

The input is a tensor of rows, float64 [n, 8]. A row describes a picture (`PICTURE`), a true box
(`TRUE_BOX`) or a detection (`FOUND`). The columns are: the kind of the row; the picture's number;
the class; left, top, right and bottom in pixels of the picture; and a last column. For a true box,
the last column says whether the box is ignored. For a detection, it is the score.
"""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from ppll_cli.tasks.details import Details, Entry

COLUMNS = 8
TRUE_BOX, FOUND, PICTURE = range(3)
OVERLAP = 0.5
OVERLAPS = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}
"""For each metric, the slice of COCO's overlaps 0.5, 0.55 ... 0.95 over which it is averaged."""

Floats = NDArray[np.float64]


def average_precisions(rows: Tensor, classes: Sequence[str], crowds: bool) -> Mapping[str, float]:
    """Return all metrics, averaged over classes, in [0, 1]; NaN if there are no boxes to find.

    `crowds` says whether ignored boxes are crowds, which any number of detections may match.

    Returns:
        By name: `ap` (mean over overlaps of 0.5 to 0.95), `ap50` and `ap75`, computed by
            pycocotools. If `crowds` is False, also `voc_ap50`, the area under the precision-recall
            curve, and `voc07_ap50`, the mean of 11 points of this curve.
    """
    precision = _coco(rows, tuple(classes), crowds)
    found = {name: _mean(precision[at]) for name, at in OVERLAPS.items()}
    if crowds:
        return found
    area, points = _voc(rows, len(classes))
    return {**found, "voc_ap50": area, "voc07_ap50": points}


def precisions_by_class(rows: Tensor, classes: Sequence[str], crowds: bool) -> Details:
    """Return `ap`, `ap50`, `ap75` and the number of boxes to find, for each class."""
    precision = _coco(rows, tuple(classes), crowds)
    to_find = rows[(rows[:, 0] == TRUE_BOX) & (rows[:, 7] == 0)]
    entries: list[Entry] = []
    for label, name in enumerate(classes):
        of_class = {key: _mean(precision[at][..., label]) for key, at in OVERLAPS.items()}
        boxes = int((to_find[:, 2] == label).sum())
        entries.append({"class": name, "boxes": boxes, **of_class})
    return Details("class", entries)


@lru_cache(maxsize=1)  # an evaluation calls this twice with the same rows
def _coco(rows: Tensor, classes: tuple[str, ...], crowds: bool) -> Floats:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    there, found = COCO(), COCO()
    pictures = [{"id": int(number)} for number in sorted(set(rows[:, 1].tolist()))]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    kinds: list[list[dict[str, Any]]] = [[], []]
    for row in rows[rows[:, 0] != PICTURE].tolist():
        kind, picture, label, left, top, right, bottom, last = row
        width, height = right - left, bottom - top
        ignored = kind == TRUE_BOX and bool(last)
        box = {
            "id": len(kinds[int(kind)]) + 1,  # for pycocotools, the id 0 means no match
            "image_id": int(picture),
            "category_id": int(label) + 1,
            "bbox": [left, top, width, height],
            # An area of -1 is outside of all ranges, so pycocotools ignores the box and one
            # detection that matches it.
            "area": -1.0 if ignored and not crowds else width * height,
            "iscrowd": int(ignored and crowds),
            "score": last,
        }
        kinds[int(kind)].append(box)
    if not kinds[TRUE_BOX]:
        return np.full((10, 101, len(classes)), -1.0)
    with redirect_stdout(io.StringIO()):
        for coco, boxes in zip((there, found), kinds, strict=True):
            coco.dataset = {"images": pictures, "categories": categories, "annotations": boxes}
            coco.createIndex()
        evaluation = COCOeval(there, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Floats = evaluation.eval["precision"][..., 0, -1]  # [overlaps, recalls, classes]
    return precision


def _mean(precision: Floats) -> float:
    known = precision[precision > -1]  # -1 is the value for a class without boxes
    return float(known.mean()) if known.size else nan


def _voc(rows: Tensor, classes: int) -> tuple[float, float]:
    curves = []
    for label in range(classes):
        here = rows[rows[:, 2] == label]
        there, found = here[here[:, 0] == TRUE_BOX], here[here[:, 0] == FOUND]
        total = int((there[:, 7] == 0).sum())
        if total:
            curves.append(_curve(there, found, total))
    if not curves:
        return nan, nan
    areas = [_area(recall, precision) for recall, precision in curves]
    points = [_points(recall, precision) for recall, precision in curves]
    return float(np.mean(areas)), float(np.mean(points))


def _curve(there: Tensor, found: Tensor, total: int) -> tuple[Floats, Floats]:
    of_picture: dict[float, list[int]] = defaultdict(list)
    for index, picture in enumerate(there[:, 1].tolist()):
        of_picture[picture].append(index)
    right, wrong = [], []
    taken: set[int] = set()
    for row in found[found[:, 7].argsort(descending=True, stable=True)]:
        candidates = of_picture[float(row[1])]
        overlap, index = 0.0, -1
        if candidates:
            # As in VOC's own code, a detection can match only the box that it overlaps most. Unlike
            # there, coordinates are edges of pixels, not indices of pixels.
            overlaps = box_iou(row[None, 3:7], there[candidates, 3:7])[0]
            overlap, index = float(overlaps.max()), candidates[int(overlaps.argmax())]
        hit = overlap >= OVERLAP
        if hit and there[index, 7]:  # an ignored box
            continue
        first = hit and index not in taken
        right.append(first)
        wrong.append(not first)
        if first:
            taken.add(index)
    hits, misses = np.cumsum(right, dtype=float), np.cumsum(wrong, dtype=float)
    return hits / total, hits / np.maximum(hits + misses, 1)


def _area(recall: Floats, precision: Floats) -> float:
    ends = np.concatenate(([0.0], recall, [1.0]))
    heights = np.concatenate(([0.0], precision, [0.0]))
    heights = np.maximum.accumulate(heights[::-1])[::-1]
    return float(np.sum(np.diff(ends) * heights[1:]))


def _points(recall: Floats, precision: Floats) -> float:
    best = [precision[recall >= at - 1e-9].max(initial=0.0) for at in np.linspace(0, 1, 11)]
    return float(np.mean(best))
