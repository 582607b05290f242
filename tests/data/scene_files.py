"""Small data sets for detection as files, in the published layouts, and Fashion-MNIST in small."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.data.picture_files import picture

WIDTH, HEIGHT = 50, 40

VOC_OBJECTS: dict[str, Sequence[tuple[str, Sequence[float], bool]]] = {
    "000001": [("dog", (9, 5, 30, 24), False), ("person", (21, 11, 48, 39), True)],
    "000002": [],
    "000003": [("cat", (1, 1, 50, 40), False), ("cow", (20, 20, 19, 30), False)],
    "000004": [("car", (-3, 10.5, 60, 20), False)],
}
"""Names, then left, top, right and bottom as VOC counts, from 1, and whether it is difficult.

The cow is degenerate; the car reaches beyond the picture, and one of its sides is between pixels.
"""


def voc_xml(name: str, objects: Sequence[tuple[str, Sequence[float], bool]]) -> str:
    """An annotation."""
    parts = []
    for label, (left, top, right, bottom), difficult in objects:
        sides = f"<xmin>{left}</xmin><xmax>{right}</xmax><ymin>{top}</ymin><ymax>{bottom}</ymax>"
        # People have parts with names and boxes of their own, which are no objects.
        part = f"<part><name>head</name><bndbox>{sides}</bndbox></part>"
        parts.append(
            f"<object><name>{label}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{int(difficult)}</difficult><bndbox>{sides}</bndbox>{part}</object>"
        )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{''.join(parts)}</annotation>\n"


def write_voc(root: Path, years: Sequence[str] = ("2007", "2012")) -> Path:
    """Four pictures for each list of each year, named 000001 to 000004 after it."""
    for year in years:
        devkit = root / "VOCdevkit" / f"VOC{year}"
        lists = devkit / "ImageSets" / "Main"
        for folder in (lists, devkit / "Annotations", devkit / "JPEGImages"):
            folder.mkdir(parents=True)
        names = {"2007": ("trainval", "test"), "2012": ("train", "val", "trainval")}[year]
        for name in names:
            pictures = [f"{name}{number}" for number in VOC_OBJECTS]
            (lists / f"{name}.txt").write_text("".join(f"{each}\n" for each in pictures))
            for number, (each, objects) in enumerate(
                zip(pictures, VOC_OBJECTS.values(), strict=True)
            ):
                (devkit / "Annotations" / f"{each}.xml").write_text(voc_xml(each, objects))
                file = devkit / "JPEGImages" / f"{each}.jpg"
                picture(number, WIDTH, HEIGHT).save(file, quality=95)
    return root


COCO_CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 1, "name": "person"}, {"id": 90, "name": "x"}]
"""Not in order, and with gaps, as COCO's are."""

COCO_BOXES = [
    (30, 17, (4.5, 3, 20, 10), 0),
    (30, 1, (0, 0, 50, 30), 1),
    (7, 90, (40, 30, 30, 30), 0),
    (7, 1, (10, 10, 0.4, 20), 0),
]
"""Picture, category, left, top, width and height, crowd: one beyond the border, one degenerate."""


def write_coco(root: Path) -> Path:
    """Three pictures for training, 7, 9 and 30, and for the test; 9 has nothing in it."""
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (root / part).mkdir()
        images = []
        for number in (30, 7, 9):
            name = f"{number:012}.jpg"
            picture(number % 5, WIDTH, HEIGHT).save(root / part / name, quality=95)
            images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        annotations = [
            {"id": n, "image_id": i, "category_id": c, "bbox": list(b), "iscrowd": crowd, "area": 1}
            for n, (i, c, b, crowd) in enumerate(COCO_BOXES)
        ]
        content = {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": COCO_CATEGORIES,
        }
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def idx(array: NDArray[Any]) -> bytes:
    """An idx file of bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_fashion(root: Path, count: int = 20) -> Path:
    """Fashion-MNIST's four files with discs and rings, larger ones for higher classes."""
    root.mkdir(parents=True)
    rows, columns = np.mgrid[:28, :28] - 13.5
    distance = np.hypot(rows, columns)
    for part, shift in (("train", 0), ("t10k", 40)):
        labels = np.arange(count) % 10
        radii = 5 + 0.8 * labels[:, None, None]
        discs = np.where(distance < radii, 200 - shift - 10 * (distance < radii / 3), 0)
        (root / f"{part}-images-idx3-ubyte").write_bytes(idx(discs))
        (root / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return root
