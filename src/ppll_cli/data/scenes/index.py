"""Which objects are where in the pictures of a data set, in few arrays, and kept in a file.

Legend: P pictures, n objects of one of them, S objects of all.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.dataset import cache_root
from ppll_cli.errors import ConfigError
from ppll_cli.files import write_bytes

_VERSION = 1  # of what is kept: another number makes everything anew
_LEAST_SIDE = 1.0  # pixels: what is thinner is no object

Bytes = NDArray[np.uint8]


class Found(NamedTuple):
    """A picture's objects as an annotation has them.

    Attributes:
        height: Of the picture, in pixels.
        width: Likewise.
        objects: Left, top, right and bottom in pixels from 0, the class, and whether it is ignored.
    """

    height: float
    width: float
    objects: Sequence[tuple[float, float, float, float, int, bool]]


@dataclass(frozen=True)
class Objects:
    """The objects of some pictures, those of one picture in a row.

    Attributes:
        starts: Where each picture's begin, and where the last one's end, int64 [P + 1].
        boxes: Left, top, right and bottom in the pictures' own pixels, float32 [S, 4].
        labels: Classes from 0, int64 [S].
        ignored: Neither learnt nor asked for, bool [S].
    """

    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]

    @classmethod
    def of(cls, pictures: Iterable[Found]) -> "Objects":
        """Boxes are cut off at the picture's border; what is thinner than a pixel then is dropped.

        Pictures without objects stay.
        """
        starts, rows = [0], []
        for picture in pictures:
            for box in picture.objects:
                left, top, right, bottom, label, ignored = box
                left, right = max(left, 0.0), min(right, picture.width)
                top, bottom = max(top, 0.0), min(bottom, picture.height)
                if min(right - left, bottom - top) >= _LEAST_SIDE:
                    rows.append((left, top, right, bottom, label, ignored))
            starts.append(len(rows))
        table = np.array(rows, dtype=np.float64).reshape(-1, 6)
        boxes, labels = table[:, :4].astype(np.float32), table[:, 4].astype(np.int64)
        return cls(np.array(starts, dtype=np.int64), boxes, labels, table[:, 5] != 0)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays by name, to be written."""
        return {
            "starts": self.starts,
            "boxes": self.boxes,
            "labels": self.labels,
            "ignored": self.ignored,
        }


@dataclass(frozen=True)
class Index:
    """What annotations say.

    Attributes:
        classes: Their names.
        files: Of the P pictures, relative to where the data set has them.
        objects: What is in them.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    objects: Objects


class Scene(NamedTuple):
    """A picture and its objects.

    Attributes:
        pixels: The picture's file, or its pixels uint8 [height, width, 3].
        boxes: Left, top, right and bottom in its own pixels, float32 [n, 4].
        labels: Classes from 0, int64 [n].
        ignored: Neither learnt nor asked for, bool [n].
    """

    pixels: Path | Bytes
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True)
class Scenes:
    """Some of a data set's pictures, in order: a split.

    Attributes:
        pixels: The P pictures' files, or their pixels, uint8 [height, width, 3] each.
        objects: What is in the P pictures.
        chosen: Which of them are in the split, int64 [pictures of the split].
    """

    pixels: Sequence[Path] | Bytes
    objects: Objects
    chosen: NDArray[np.intp]

    @classmethod
    def all(cls, pixels: Sequence[Path] | Bytes, objects: Objects) -> "Scenes":
        """Every picture."""
        assert len(pixels) == len(objects)
        return cls(pixels, objects, np.arange(len(objects)))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> Scene:
        picture = int(self.chosen[number])
        here = slice(*self.objects.starts[picture : picture + 2])
        found = self.objects
        return Scene(
            self.pixels[picture], found.boxes[here], found.labels[here], found.ignored[here]
        )

    def of(self, numbers: slice | NDArray[np.intp]) -> "Scenes":
        """A part of them."""
        return Scenes(self.pixels, self.objects, self.chosen[numbers])

    @property
    def most_objects(self) -> int:
        """Of any picture."""
        counts = np.diff(self.objects.starts)[self.chosen]
        return int(counts.max(initial=0))


def place(folder: str, recipe: object) -> Path:
    """Where something is kept in the cache folder.

    Args:
        folder: For what of its kind.
        recipe: All that it depends on; JSON must know it.
    """
    written = json.dumps([_VERSION, recipe]).encode()
    return cache_root() / folder / blake2b(written, digest_size=12).hexdigest()


def unwritable(path: Path, error: OSError) -> ConfigError:
    """The error for a cache folder that cannot be written to."""
    problem = f"nothing can be kept in the cache folder ({error.strerror})"
    return ConfigError("data", path, problem, "set XDG_CACHE_HOME to a folder that can be written")


def kept_index(recipe: object, make: Callable[[], Index]) -> Index:
    """An index, made now or at an earlier time: annotations take long to read.

    Args:
        recipe: All that it depends on.
        make: Reads the annotations.

    Raises:
        ConfigError: They cannot be read, or the index cannot be kept.
    """
    path = place("scenes", recipe).with_suffix(".npz")
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):
        made = make()
    buffer = BytesIO()
    classes, files = (np.array(names, np.str_) for names in (made.classes, made.files))
    np.savez(buffer, classes=classes, files=files, **made.objects.arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise unwritable(path, error) from error
    return made


def _read(path: Path) -> Index:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        classes, files = (tuple(stored[key].tolist()) for key in ("classes", "files"))
        return Index(classes, files, read_objects(stored))


def read_objects(stored: "np.lib.npyio.NpzFile") -> Objects:
    """The arrays of a file in which they stand beside others."""
    return Objects(stored["starts"], stored["boxes"], stored["labels"], stored["ignored"])


def stamp(path: Path) -> tuple[str, int, int]:
    """What of a file changes with its content, without reading it.

    Raises:
        OSError: There is none.
    """
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns
