"""COCO 2017: 118,287 training and 5,000 validation photographs with boxes of 80 classes."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from ppll_cli.data.dataset import PARTS, Part
from ppll_cli.data.scenes.dataset import DetectionDataset
from ppll_cli.data.scenes.index import Found, Index, Objects, Scenes, kept_index, stamp

URL = "https://cocodataset.org/#download"
FOLDERS = {"train": "train2017", "test": "val2017"}
"""Where the pictures of each part are: the test is on the validation pictures, as usual."""


@dataclass(frozen=True, kw_only=True)
class Coco(DetectionDataset):
    """annotations/instances_train2017.json, train2017 and the same for val2017 in the root.

    Other data sets of this form can be put there as well: the classes are those of the file, in
    order of their numbers. Crowds are ignored. The 19 GB are not downloaded.
    """

    @property
    def classes(self) -> tuple[str, ...]:  # noqa: D102
        return self._indices["train"].classes

    @property
    def crowds(self) -> bool:  # noqa: D102
        return True

    def read(self, part: Part) -> Scenes:  # noqa: D102
        index = self._indices[part]
        folder = self.folder / FOLDERS[part]
        try:
            there = set(os.listdir(folder))
        except OSError as error:
            raise self._missing(folder) from error
        for name in index.files:
            if name not in there and not (folder / name).is_file():
                raise self._missing(folder / name)
        return Scenes.all([folder / name for name in index.files], index.objects)

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        train, test = (self._indices[part].classes for part in PARTS)
        if train != test:
            problem = f"its classes are not those of {self._annotations('train').name}"
            raise self.fault(self._annotations("test"), problem)

    def _annotations(self, part: Part) -> Path:
        return self.folder / "annotations" / f"instances_{FOLDERS[part]}.json"

    @cached_property
    def _indices(self) -> dict[Part, Index]:
        """Of each part."""
        return {part: self._index(part) for part in PARTS}

    def _index(self, part: Part) -> Index:
        path = self._annotations(part)
        try:
            found = stamp(path)
        except OSError as error:
            raise self._missing(path) from error

        def make() -> Index:
            try:
                return parse(json.loads(path.read_bytes()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                problem = f"is no file of annotations ({type(error).__name__}: {error})"
                raise self.fault(path, problem) from error

        return kept_index(["coco", found], make)

    def _missing(self, path: Path) -> Exception:
        remedy = f"unpack 2017's pictures and annotations of {URL} so that {path} exists"
        return self.fault(path, "is missing", f"{remedy}, or give their folder as data.root")


def parse(content: Any) -> Index:
    """What a file of annotations says; pictures are in order of their numbers.

    Raises:
        KeyError, TypeError, ValueError: It is not as it should be.
    """
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    labels = {category["id"]: label for label, category in enumerate(categories)}
    pictures = sorted(content["images"], key=lambda picture: int(picture["id"]))
    objects: dict[int, list[tuple[float, float, float, float, int, bool]]] = {
        picture["id"]: [] for picture in pictures
    }
    for annotation in content["annotations"]:
        number = annotation.get("id")
        left, top, width, height = map(float, annotation["bbox"])
        if not all(map(isfinite, (left, top, width, height))):
            raise ValueError(f"annotation {number} has the box {annotation['bbox']}")
        if annotation["image_id"] not in objects:
            raise ValueError(f"annotation {number} is of no listed picture")
        label, crowd = labels[annotation["category_id"]], bool(annotation.get("iscrowd", 0))
        box = (left, top, left + width, top + height, label, crowd)
        objects[annotation["image_id"]].append(box)
    return Index(
        tuple(str(category["name"]) for category in categories),
        tuple(str(picture["file_name"]) for picture in pictures),
        Objects.of(
            Found(float(picture["height"]), float(picture["width"]), objects[picture["id"]])
            for picture in pictures
        ),
    )
