"""Holds the objects of all pictures of a data set in a few arrays, which are saved in a file.

Legend: P pictures, n objects of one picture, S objects of all pictures.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppll_cli.data.files import cache_root
from ppll_cli.data.kept import kept_file, place
from ppll_cli.data.pictures.cache import Bytes
from ppll_cli.data.pictures.files import Header, decoded, header
from ppll_cli.errors import ConfigError

MOST_PIXELS = 1e6
"""Largest position or size, in pixels, that is accepted in an annotation."""

_LEAST_SIDE = 1.0  # smallest height and width of a box, in pixels; smaller boxes are dropped
_LEAST_PART = 0.5  # smallest fraction of a box's area that should be inside its picture


Object = tuple[float, float, float, float, int, bool]
"""Left, top, right and bottom in pixels from 0, label of the class, and whether it is ignored."""


class Found(NamedTuple):
    """The annotation of a picture: height and width in pixels, and the objects."""

    height: float
    width: float
    objects: Sequence[Object]


@dataclass(frozen=True)
class Objects:
    """The objects of P pictures, sorted by picture."""

    starts: NDArray[np.int64]  # index of the first object of each picture, then S, [P + 1]
    boxes: NDArray[np.float32]  # left, top, right, bottom in pixels, as in the annotation, [S, 4]
    labels: NDArray[np.int64]  # classes from 0, [S]
    ignored: NDArray[np.bool_]  # whether objects are left out of training and scoring, [S]

    @classmethod
    def of(cls, pictures: Sequence[Found]) -> "Objects":
        """Gather the objects of pictures.

        Boxes are clipped at the picture's border. An object is dropped if its clipped box is less
        than one pixel wide or high. Pictures without objects remain.
        """
        table, boxes = _clipped(pictures)
        kept = _sides(boxes).min(axis=1) >= _LEAST_SIDE
        table, boxes = table[kept], boxes[kept].astype(np.float32)
        starts = np.searchsorted(table[:, 0], np.arange(len(pictures) + 1)).astype(np.int64)
        return cls(starts, boxes, table[:, 5].astype(np.int64), table[:, 6] != 0)

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True)
class Index:
    """The annotations of a data set's training or test pictures (P pictures)."""

    classes: tuple[str, ...]  # names of the classes, in the order of their labels
    files: tuple[str, ...]  # paths of the pictures, relative to the data set's folder of pictures
    sizes: NDArray[np.int64]  # width and height in the annotations, in pixels, [P, 2]
    objects: Objects
    remark: str = ""  # a warning for the user about boxes that are dropped or clipped

    @classmethod
    def of(cls, classes: Sequence[str], files: Sequence[str], pictures: Sequence[Found]) -> "Index":
        """Gather the annotations of pictures.

        Raises:
            ValueError: More than half of the boxes lie mostly outside of their pictures, or are
                thinner than a pixel. Or all boxes end within the first pixel, so their unit is
                probably not pixels.
        """
        sizes = np.array([(each.width, each.height) for each in pictures], dtype=np.int64)
        remark = _remark(files, pictures)
        return cls(tuple(classes), tuple(files), sizes.reshape(-1, 2), Objects.of(pictures), remark)


class Scene(NamedTuple):
    """A picture and its objects."""

    pixels: Path | Bytes  # the picture's file, or its pixels, uint8 [height, width, 3]
    boxes: NDArray[np.float32]  # left, top, right, bottom in pixels of the upright picture, [n, 4]
    labels: NDArray[np.int64]  # classes from 0, [n]
    ignored: NDArray[np.bool_]  # whether objects are left out of training and scoring, [n]

    @property
    def picture(self) -> Image.Image:
        """The upright picture in RGB."""
        pixels = self.pixels
        return decoded(pixels) if isinstance(pixels, Path) else Image.fromarray(np.asarray(pixels))


@dataclass(frozen=True)
class Scenes:
    """A split of a data set: some of its P training or test pictures."""

    pixels: Sequence[Path] | Bytes  # files of P pictures, or their pixels, [height, width, 3] each
    objects: Objects  # objects of the P pictures
    chosen: NDArray[np.intp]  # indices of the split's pictures, in the split's order
    sizes: NDArray[np.int64] | None = None  # as in `Index`; None if sizes need not be checked
    remark: str = ""

    @classmethod
    def all(cls, pixels: Sequence[Path] | Bytes, objects: Objects) -> "Scenes":
        """Return all pictures as a split, without checking their sizes."""
        assert len(pixels) == len(objects)
        return cls(pixels, objects, np.arange(len(objects)))

    @classmethod
    def indexed(cls, folder: Path, index: Index) -> "Scenes":
        """Return a split of all pictures of an index; their files are in `folder`."""
        files, order = [folder / name for name in index.files], np.arange(len(index.files))
        return cls(files, index.objects, order, index.sizes, index.remark)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> Scene:
        """Return a picture and its objects.

        Raises:
            ConfigError: The file cannot be read, or its size differs from the annotation.
        """
        picture = int(self.chosen[number])
        here = slice(*self.objects.starts[picture : picture + 2])
        found, pixels = self.objects, self.pixels[picture]
        boxes = found.boxes[here]
        if self.sizes is not None and isinstance(pixels, Path):
            width, height = self.sizes[picture].tolist()
            boxes = on_upright(pixels, (width, height), boxes)
        return Scene(pixels, boxes, found.labels[here], found.ignored[here])

    def of(self, numbers: slice | NDArray[np.intp]) -> "Scenes":
        """Return a split of the pictures at the positions `numbers` in this split."""
        return Scenes(self.pixels, self.objects, self.chosen[numbers], self.sizes, self.remark)

    @property
    def most_objects(self) -> int:
        """Largest number of objects of a picture of the split."""
        counts = np.diff(self.objects.starts)[self.chosen]
        return int(counts.max(initial=0))

    @property
    def not_ignored(self) -> int:
        """Number of objects in the split that are not ignored."""
        counted = np.concatenate(([0], np.cumsum(~self.objects.ignored)))
        of_each = np.diff(counted[self.objects.starts])
        return int(of_each[self.chosen].sum())


def kept_index(recipe: object, make: Callable[[], Index]) -> Index:
    """Return an index from the cache, because annotations take long to read.

    Args:
        recipe: Everything that determines the index, as JSON values.
        make: Makes the index if the cache has none, or if its file is damaged.
    """
    path = place(cache_root() / "scenes", recipe).with_suffix(".npz")
    return kept_file(path, make, _read, _written)


def _written(index: Index) -> bytes:
    # Names are stored as JSON, because an array pads all strings to the length of the longest.
    names = json.dumps([index.classes, index.files, index.remark]).encode()
    buffer, text = BytesIO(), np.frombuffer(names, np.uint8)
    np.savez(buffer, names=text, sizes=index.sizes, **vars(index.objects))
    return buffer.getvalue()


def _read(path: Path) -> Index:
    # NumPy checks the file's checksums, so what can be read is what was written.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    classes, files, remark = json.loads(arrays.pop("names").tobytes())
    sizes = arrays.pop("sizes")
    return Index(tuple(classes), tuple(files), sizes, Objects(**arrays), remark)


def _remark(files: Sequence[str], pictures: Sequence[Found]) -> str:
    table, clipped = _clipped(pictures)
    total = len(table)
    if total and table[:, 3:5].max() <= 1:
        raise ValueError("all boxes end within the first pixel: give pixels, not fractions")
    sides = _sides(clipped)
    dropped = sides.min(axis=1) < _LEAST_SIDE
    outside = dropped | (sides.prod(axis=1) < _LEAST_PART * _sides(table[:, 1:5]).prod(axis=1))
    missing, wrong = int(dropped.sum()), int(outside.sum())
    if 2 * wrong > total:
        problem = f"{wrong} of {total} boxes lie mostly outside of their pictures"
        problem += ", or are thinner than a pixel"
        raise ValueError(f"{problem}; {files[int(table[outside][0, 0])]} has such boxes")
    if not wrong:
        return ""
    first = f", the first in {files[int(table[dropped][0, 0])]}" if missing else ""
    return (
        f"{missing} of {total} boxes are left out, because they lie outside of their pictures "
        f"or are thinner than a pixel{first}; {wrong - missing} more boxes lose over half of "
        "their area at the border"
    )


def _clipped(pictures: Sequence[Found]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Columns: index of the picture, then the six numbers of an `Object`.
    rows = [(number, *each) for number, picture in enumerate(pictures) for each in picture.objects]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    sizes = np.array([(each.width, each.height) for each in pictures]).reshape(-1, 2)
    ends = np.minimum(table[:, 3:5], sizes[table[:, 0].astype(np.intp)])
    return table, np.hstack([np.maximum(table[:, 1:3], 0.0), ends])


def _sides(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return boxes[:, 2:] - boxes[:, :2]


def on_upright(
    path: Path, size: tuple[int, int], boxes: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return an annotation's boxes in pixels of the upright picture.

    Some annotations describe the stored picture, before EXIF turns it. Their boxes are turned.
    `size`, the width and height in the annotation, shows which picture is described. Boxes are
    [n, 4]: left, top, right and bottom in pixels.

    Raises:
        ConfigError: The file cannot be read, or `size` fits neither picture.
    """
    found = header(path)
    if size == found.upright:
        return boxes
    if size == found.size:
        return _turned(boxes, found)
    width, height = found.upright
    problem = f"measures {width}x{height} pixels, but its annotation says {size[0]}x{size[1]}"
    raise ConfigError("data", path, problem, "correct the annotation (width x height)")


def _turned(boxes: NDArray[np.float32], found: Header) -> NDArray[np.float32]:
    left, top, right, bottom = boxes.T
    width, height = (np.float32(side) for side in found.size)
    sides = {
        5: (top, left, bottom, right),
        6: (height - bottom, left, height - top, right),
        7: (height - bottom, width - right, height - top, width - left),
        8: (top, width - right, bottom, width - left),
    }
    return np.stack(sides[found.orientation], axis=1)
