"""Pascal VOC 2007 and 2012: photographs with boxes of 20 classes (Everingham et al., 2010)."""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppll_cli.data.download import one_line, provide
from ppll_cli.data.files import PARTS, Part
from ppll_cli.data.kept import stamp
from ppll_cli.data.scenes.dataset import DetectionDataset
from ppll_cli.data.scenes.index import MOST_PIXELS, Found, Index, Object, Scenes, kept_index
from ppll_cli.errors import ConfigError

URL = "http://host.robots.ox.ac.uk/pascal/VOC/"

Lists = Sequence[tuple[str, str]]
"""Pairs of a year and the name of a list of pictures in ImageSets/Main."""

YEARS: Mapping[str, Mapping[Part, Lists]] = {
    "07": {"train": [("2007", "trainval")], "test": [("2007", "test")]},
    "12": {"train": [("2012", "train")], "test": [("2012", "val")]},
    "07+12": {"train": [("2007", "trainval"), ("2012", "trainval")], "test": [("2007", "test")]},
}
"""The lists of each part, by the value of data.years. The test boxes of 2012 are not public, so the
value `12` tests on the list `val`.
"""

_MEND = "correct or replace the annotation"

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


@dataclass(frozen=True, kw_only=True)
class Voc(DetectionDataset):
    """Pascal VOC from VOCdevkit/VOC2007 and VOCdevkit/VOC2012 in the data root.

    Each of these folders contains Annotations, JPEGImages and ImageSets/Main. Objects that are
    marked as difficult are left out of training, where they count as background, and the score
    ignores them.

    Attributes:
        years: `07`, `12` or `07+12`; `YEARS` has the lists of pictures for each value. YAML reads
            07 as the number 7, so 7 means `07`.
    """

    years: str | int

    class_names = CLASSES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._years not in YEARS:
            raise ConfigError(
                "data.years", self.years, "is unknown", f"choose {', '.join(sorted(YEARS))}"
            )

    @property
    def _years(self) -> str:
        return f"{self.years:02}" if isinstance(self.years, int) else self.years

    def prepare(self) -> None:  # noqa: D102
        lists = [_list(year, name) for part in PARTS for year, name in self._lists(part)]
        provide(self, lists, URL, self._fetch, everything=True)
        super().prepare()

    def _fetch(self, folder: Path) -> None:
        from torchvision.datasets import VOCDetection

        for part in PARTS:
            for year, name in self._lists(part):
                if not any((root / _list(year, name)).is_file() for root in (self.folder, folder)):
                    data = VOCDetection(folder, year=year, image_set=name, download=True)
                    (folder / data.filename).unlink()

    def _lists(self, part: Part) -> Lists:
        return YEARS[self._years][part]

    def read(self, part: Part) -> Scenes:  # noqa: D102
        named = [
            (_devkit(year), picture)
            for year, name in self._lists(part)
            for picture in self._pictures(year, name)
        ]
        annotations = [f"{folder}/Annotations/{picture}.xml" for folder, picture in named]
        try:
            stamps = [stamp(self.folder / name) for name in annotations]
        except OSError as error:
            raise self.fault(error.filename, "cannot be read", self._remedy) from error
        files = tuple(f"{folder}/JPEGImages/{picture}.jpg" for folder, picture in named)
        index = kept_index(["voc", stamps], lambda: self._index(annotations, files))
        return Scenes.indexed(self.folder, index)

    @property
    def _remedy(self) -> str:
        return f"unpack the archives of {URL} into {self.folder}"

    def _pictures(self, year: str, name: str) -> list[str]:
        path = self.folder / _list(year, name)
        try:
            pictures = path.read_text().split()
            there = set(os.listdir(self.folder / _devkit(year) / "JPEGImages"))
        except (OSError, UnicodeDecodeError) as error:
            where = getattr(error, "filename", None) or path
            raise self.fault(where, "cannot be read", self._remedy) from error
        for picture in pictures:
            if f"{picture}.jpg" not in there:
                where = self.folder / _devkit(year) / "JPEGImages" / f"{picture}.jpg"
                raise self.fault(where, f"is missing, but {path.name} lists it", self._remedy)
        return pictures

    def _index(self, annotations: Sequence[str], files: tuple[str, ...]) -> Index:
        found = []
        for name in annotations:
            try:
                found.append(parse(self.folder / name))
            except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
                problem = f"is not an annotation ({one_line(error)})"
                raise self.fault(self.folder / name, problem, _MEND) from error
        try:
            return Index.of(CLASSES, files, found)
        except ValueError as error:
            raise self.fault(self.folder, one_line(error), _MEND) from error


def parse(path: Path) -> Found:
    """Read a picture's annotation, and convert its boxes to pixels that are counted from 0.

    VOC counts pixels from 1, and its boxes include their last pixel.

    Raises:
        OSError: The file cannot be read.
        ValueError: A value is missing or not allowed, or a class is unknown.
        LookupError: The encoding of the file is unknown.
        xml.etree.ElementTree.ParseError: The file is not XML.
    """
    tree = ElementTree.parse(path).getroot()
    height, width = (_number(tree, f"size/{side}") for side in ("height", "width"))
    if not (height >= 1 and width >= 1 and height.is_integer() and width.is_integer()):
        raise ValueError(f"its picture has the size {width:g} x {height:g}, not whole pixels")
    objects = []
    for number, element in enumerate(tree.iterfind("object"), start=1):
        try:
            objects.append(_object(element))
        except ValueError as error:
            raise ValueError(f"object {number}: {error}") from error
    return Found(height, width, objects)


def _object(element: ElementTree.Element) -> Object:
    name = element.findtext("name", "").strip()
    if name not in CLASSES:
        raise ValueError(f"there is no class {name!r}")
    left, top, right, bottom = (
        _number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if right < left - 1 or bottom < top - 1:
        ends = f"{right:g}, {bottom:g}"
        raise ValueError(f"its box begins at {left:g}, {top:g}, but ends at {ends}")
    difficult = element.findtext("difficult", "0").strip()
    if difficult not in ("", "0", "1"):
        raise ValueError(f"difficult is {difficult!r}, not 0 or 1")
    return left - 1, top - 1, right, bottom, CLASSES.index(name), difficult == "1"


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    value = float(text)
    if not abs(value) <= MOST_PIXELS:  # also true for NaN
        raise ValueError(f"{path} is {text.strip()}, not a possible number of pixels")
    return value


def _devkit(year: str) -> str:
    return f"VOCdevkit/VOC{year}"


def _list(year: str, name: str) -> str:
    return f"{_devkit(year)}/ImageSets/Main/{name}.txt"
