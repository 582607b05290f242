"""Finds the pictures of a data set and their classes, in folders or from a CSV file."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppll_cli.leaves.files import open_regular, problem_of

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
"""Suffixes of pictures' files, in lower or upper case."""

PATH_NAMES = (
    *("path", "imageid", "file", "filename", "file_name", "filepath"),
    *("image", "image_path", "picture"),
)
LABEL_NAMES = ("label", "predictionstring", "class", "class_name", "category", "target", "labels")
"""Names, in lower or upper case, that the first line of a CSV file may give to the column of paths
(`PATH_NAMES`) and to the column of classes (`LABEL_NAMES`).
"""

_MOST_CSV_BYTES = 1 << 30

Classes = Mapping[str, Sequence[str]]
"""The paths of the pictures of each class, by the name of the class."""

Parts = Mapping[str, tuple[Path, Classes]]
"""The folder or CSV file of each part, and its pictures. The parts are `train` and, if they exist,
`test` and `val`."""


@dataclass(frozen=True)
class Listing:
    """The paths of the N pictures of a split, and their labels, int64 [N]."""

    paths: Sequence[str]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def of(self, numbers: slice | NDArray[np.intp]) -> "Listing":
        """Return the listing of some of the pictures, chosen by index."""
        chosen = np.arange(len(self))[numbers]
        return Listing([self.paths[number] for number in chosen], self.labels[chosen])


class ListingError(ValueError):
    """Raised when pictures or their classes cannot be found in a file or folder.

    Its arguments are the file or folder, the problem, and the remedy.
    """


def arranged(parts: Parts) -> tuple[tuple[str, ...], dict[str, Listing]]:
    """Number the classes of the training pictures, and check the classes of the other parts.

    Returns:
        The names of the classes, in the order of their labels; and the `Listing` of each part.

    Raises:
        ListingError: A part has no pictures, or there is only one class. Or `test` or `val` has a
            class that `train` does not have, or is a folder that lacks a class of `train`.
    """
    source, train = parts["train"]
    classes = in_order(train)
    if len(classes) < 2:
        problem, remedy = f"has only one class, {classes[0]}", "give at least two classes"
        raise ListingError(source, problem, remedy)
    listings = {}
    for part, (source, found) in parts.items():
        _check_classes(source, found, classes)
        counts = [len(found.get(name, ())) for name in classes]
        paths = [path for name in classes for path in found.get(name, ())]
        if not paths:
            raise ListingError(source, f"has no pictures for {part}", "add pictures")
        listings[part] = Listing(paths, np.repeat(np.arange(len(classes)), counts))
    return classes, listings


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names of classes: as numbers if all are numbers, and as text if not."""
    names = list(names)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def class_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden folders.

    Raises:
        ListingError: The folder cannot be read.
    """
    with _reading(folder), os.scandir(folder) as entries:
        found = [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]
    return [folder / name for name in sorted(found)]


def from_folders(folder: Path, *, empty: bool = False) -> Classes:
    """Find the pictures of each class in the folder of this class and in its subfolders.

    Args:
        folder: The folder that has the folders of the classes.
        empty: Whether a class may have no pictures.

    Raises:
        ListingError: There are no classes, a folder cannot be read, or a class has no pictures and
            `empty` is False.
    """
    found: dict[str, Sequence[str]] = {}
    for inner in class_folders(folder):
        found[inner.name] = _pictures(inner)
        if not found[inner.name] and not empty:
            raise ListingError(
                inner,
                "this class has no pictures",
                "put some there, or remove the folder; names of pictures end in "
                f"{', '.join(SUFFIXES[:5])} or similar",
            )
    if not found:
        raise ListingError(
            folder, "has no folders of classes", "make a folder for each class, with its pictures"
        )
    return found


def from_csv(
    file: Path,
    *folders: Path,
    meant: Callable[[str, str], tuple[str, str]] = lambda path, label: (path, label),
) -> Classes:
    """Find the pictures that a CSV file lists; each line has the path and the class of a picture.

    The first line may name the columns, as in `PATH_NAMES` and `LABEL_NAMES`. Without names, paths
    are in the first column, and classes in the second. The separator is a comma, a semicolon or a
    tab. The pictures of each class stay in the order of the file.

    Args:
        file: The CSV file.
        folders: A path is relative to the first of these folders that has the picture.
        meant: Converts the texts in the two columns to the path and the class, if the file has
            something else there.

    Raises:
        ListingError: The file cannot be read as CSV or lists no pictures, a line has no path or no
            class, or a picture does not exist.
    """
    found: dict[str, list[str]] = {}
    path_at, label_at = 0, 1
    for number, cells in _rows(file):
        names = [cell.lower() for cell in cells]
        columns = [_first(names, known) for known in (PATH_NAMES, LABEL_NAMES)]
        if not found and None not in columns:
            path_at, label_at = (column or 0 for column in columns)
            continue
        where = f"{file}, line {number}"
        if len(cells) <= max(path_at, label_at) or not cells[path_at] or not cells[label_at]:
            problem = f"lacks a path or a label: {','.join(cells)}"
            raise ListingError(where, problem, "write path,label, or remove the line")
        path, label = meant(cells[path_at], cells[label_at])
        places = [folder / os.path.expanduser(path) for folder in folders]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            remedy = f"correct or remove the line; paths are relative to {folders[0]}"
            raise ListingError(where, f"there is no file {places[0]}", remedy)
        found.setdefault(label, []).append(str(there))
    if not found:
        raise ListingError(file, "lists no pictures", "write path,label in each line")
    return found


def _check_classes(source: Path, found: Iterable[str], train: Iterable[str]) -> None:
    new, lacking = sorted(set(found) - set(train)), sorted(set(train) - set(found))
    if new:
        problem = f"has the class {new[0]}, which the training pictures do not have"
        remedy = f"add {new[0]} to the training pictures, or remove it from {source.name}"
        raise ListingError(source, problem, remedy)
    if lacking and source.is_dir():
        problem = f"lacks the class {lacking[0]}, which the training pictures have"
        remedy = f"make the folder {source / lacking[0]}, empty if there are no pictures for it"
        raise ListingError(source, problem, remedy)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise ListingError(source, "is not text in UTF-8", "save it in this encoding") from error
    except OSError as error:
        problem = f"cannot be read ({problem_of(error)})"
        raise ListingError(source, problem, "repair it, or make it readable") from error


def _pictures(folder: Path) -> list[str]:
    def unreadable(error: OSError) -> None:
        raise error

    found: list[str] = []
    with _reading(folder):
        for place, inner, files in os.walk(folder, onerror=unreadable):
            inner[:] = [name for name in inner if name[0] != "."]
            found += [
                os.path.join(place, name)
                for name in files
                if name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES
            ]
    return sorted(found)


def _first(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((number for number, name in enumerate(names) if name in known), None)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    with _reading(file), open_regular(file, _MOST_CSV_BYTES) as opened:
        text = opened.read().decode("utf-8-sig")
    first = next((line for line in StringIO(text, newline="") if line.strip()), "")
    separator, lines = max(",;\t", key=first.count), StringIO(text, newline="")
    try:
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        for cells in rows:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield rows.line_num, stripped
    except csv.Error as error:
        where = f"{file}, line {rows.line_num}"
        raise ListingError(where, str(error), "correct the line") from error
