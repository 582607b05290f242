"""COCO 2017: 118,287 training and 5,000 validation photographs with boxes of 80 classes."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ppll_cli.data.download import one_line
from ppll_cli.data.files import PARTS, Part
from ppll_cli.data.kept import stamp
from ppll_cli.data.scenes.dataset import DetectionDataset
from ppll_cli.data.scenes.index import MOST_PIXELS, Found, Index, Object, Scenes, kept_index

URL = "https://cocodataset.org/#download"
FOLDERS = {"train": "train2017", "test": "val2017"}
"""Folder of the pictures of each part. COCO's validation pictures are the test set, as usual."""

_MOST_SHOWN = 60  # largest number of characters of a wrong value in a message


@dataclass(frozen=True, kw_only=True)
class Coco(DetectionDataset):
    """COCO from the folders annotations, train2017 and val2017 in the data root.

    The annotations are instances_train2017.json and instances_val2017.json. Classes are read from
    these files and ordered by id, so you can use other data in COCO's format, in files and folders
    with the same names. In training, boxes of crowds are left out and count as background. The
    score treats them as COCO's metric does. The files (19 GB) are not downloaded.
    """

    crowds = True

    @property
    def class_names(self) -> tuple[str, ...]:  # noqa: D102
        return self._indices["train"].classes

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
        return Scenes.indexed(folder, index)

    def prepare(self) -> None:  # noqa: D102
        super().prepare()
        train, test = (self._indices[part].classes for part in PARTS)
        if train != test:
            problem = f"its classes differ from those of {self._annotations('train').name}"
            raise self.fault(self._annotations("test"), problem)

    def _annotations(self, part: Part) -> Path:
        return self.folder / "annotations" / f"instances_{FOLDERS[part]}.json"

    @cached_property
    def _indices(self) -> dict[Part, Index]:
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
            except (OSError, ValueError, RecursionError) as error:
                problem = f"is not an annotation file ({one_line(error)})"
                raise self.fault(path, problem, "repair or replace it") from error

        return kept_index(["coco", found], make)

    def _missing(self, path: Path) -> Exception:
        remedy = f"unpack the 2017 pictures and annotations from {URL} so that {path} exists"
        return self.fault(path, "is missing", f"{remedy}, or give their folder as data.root")


def parse(content: Any) -> Index:
    """Convert an annotation file's content (parsed JSON) to an index, with pictures ordered by id.

    Raises:
        ValueError: An entry is missing or wrong; the message names it. Or `Index.of` refuses the
            boxes.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds {shown(content)}, not an object with images")
    categories = _by_number(content, "categories")
    pictures = _by_number(content, "images")
    names = [entry.text("name") for entry in categories.values()]
    files = [entry.text("file_name") for entry in pictures.values()]
    for key, listed in (("categories", names), ("images", files)):
        if not listed:
            raise ValueError(f"its list of {key} is empty")
    labels = {number: label for label, number in enumerate(categories)}
    objects: dict[int, list[Object]] = {number: [] for number in pictures}
    for entry in _entries(content, "annotations"):
        picture = entry.whole("image_id")
        if picture not in objects:
            raise entry.wrong("image_id", "no image has this id")
        category = entry.whole("category_id")
        if category not in labels:
            raise entry.wrong("category_id", "no category has this id")
        objects[picture].append((*entry.box(), labels[category], entry.crowd()))
    found = [
        Found(entry.side("height"), entry.side("width"), objects[number])
        for number, entry in pictures.items()
    ]
    return Index.of(names, files, found)


class _Entry(NamedTuple):
    name: str  # name of the entry in messages
    values: dict[str, Any]  # values by key, not yet checked

    def wrong(self, key: str, problem: str) -> ValueError:
        has = f"{key}={shown(self.values[key])}" if key in self.values else f"no {key}"
        return ValueError(f"{self.name} has {has}: {problem}")

    def whole(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int:  # bool is a subclass of int
            raise self.wrong(key, "it must be a whole number")
        return value

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not value.isprintable() or not value:
            raise self.wrong(key, "it must be printable text")
        return value

    def side(self, key: str) -> int:
        value = self.values.get(key)
        if not _is_number(value) or not (value >= 1 and value == int(value)):
            of = f" of {shown(self.values.get('file_name'))}"
            raise self.wrong(
                key, f"width and height{of} must be whole numbers of pixels, at least 1"
            )
        return int(value)

    def box(self) -> tuple[float, float, float, float]:
        value = self.values.get("bbox")
        if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
            raise self.wrong("bbox", "it must be left, top, width and height in pixels")
        left, top, width, height = map(float, value)
        if width < 0 or height < 0:
            raise self.wrong("bbox", "width and height must not be negative")
        return left, top, left + width, top + height

    def crowd(self) -> bool:
        value = self.values.get("iscrowd", 0)
        if value not in (0, 1) or not isinstance(value, int):
            raise self.wrong("iscrowd", "it must be 0 or 1")
        return bool(value)


def _entries(content: dict[str, Any], key: str) -> Iterator[_Entry]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"its {key} are {shown(entries)}, not a list")
    for position, values in enumerate(entries):
        if not isinstance(values, dict):
            raise ValueError(f"{key}[{position}] is {shown(values)}, not an object")
        number = f" (id {shown(values['id'])})" if "id" in values else ""
        yield _Entry(f"{key}[{position}]{number}", values)


def _by_number(content: dict[str, Any], key: str) -> dict[int, _Entry]:
    found: dict[int, _Entry] = {}
    for entry in _entries(content, key):
        number = entry.whole("id")
        if number in found:
            raise ValueError(f"{found[number].name} and {entry.name} have the same id")
        found[number] = entry
    return dict(sorted(found.items()))


def _is_number(value: Any) -> TypeGuard[int | float]:
    # The comparison also refuses NaN and infinity. `isfinite` would raise for very large ints.
    return isinstance(value, int | float) and type(value) is not bool and abs(value) <= MOST_PIXELS


def shown(value: Any) -> str:
    """Return a value of an annotation file as a short text for messages."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
