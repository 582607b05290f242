"""Writes small data sets for detection, in the published layouts, and a small Fashion-MNIST."""

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
"""The objects of each picture: name, box, and whether the object is difficult.

A box is left, top, right and bottom, counted from 1 as in VOC. The cow's box has no area. The car's
box extends beyond the picture, and one of its sides is between two pixels.
"""


def voc_xml(name: str, objects: Sequence[tuple[str, Sequence[float], bool]]) -> str:
    """Return the annotation of a picture."""
    parts = []
    for label, (left, top, right, bottom), difficult in objects:
        sides = f"<xmin>{left}</xmin><xmax>{right}</xmax><ymin>{top}</ymin><ymax>{bottom}</ymax>"
        # In VOC, people have parts with names and boxes. These are not objects.
        part = f"<part><name>head</name><bndbox>{sides}</bndbox></part>"
        parts.append(
            f"<object><name>{label}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{int(difficult)}</difficult><bndbox>{sides}</bndbox>{part}</object>"
        )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{''.join(parts)}</annotation>\n"


def write_voc(root: Path, years: Sequence[str] = ("2007", "2012")) -> Path:
    """Write four pictures for each list of each year. Their names begin with the list's name."""
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
"""Like COCO's categories, these are not in order of their ids, and some ids are missing."""

COCO_BOXES = [
    (30, 17, (4.5, 3, 20, 10), 0),
    (30, 1, (0, 0, 50, 30), 1),
    (7, 90, (40, 30, 30, 30), 0),
    (7, 1, (10, 10, 0.4, 20), 0),
]
"""For each box: picture, category, left, top, width and height, and whether it is a crowd. One box
extends beyond its picture, one is thinner than a pixel."""


def write_coco(root: Path) -> Path:
    """Write three pictures (7, 9 and 30) for each part. Picture 9 has no objects."""
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


def idx(array: NDArray[Any], magic: int = 8) -> bytes:
    """Return an idx file of bytes."""
    header = bytes([0, 0, magic, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_fashion(root: Path, count: int = 20) -> Path:
    """Write Fashion-MNIST's four files, with discs and rings. Higher classes have larger ones."""
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
