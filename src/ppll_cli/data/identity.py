"""Identifies the data that a run is trained on, independently of the folder of the files.

An identity has a list of entries for each split. An entry is, for example, the name and size of a
file, or the name and digest of an array. Data sets with equal identities count as the same data.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Entry = tuple[str, int | str]
"""A name, and a size in bytes or a text such as a digest."""

Identity = Mapping[str, Sequence[Entry]]
"""The entries of each split, by the split's name."""


def of_files(paths: Iterable[Path]) -> list[Entry]:
    """Return an entry for each file: its name without folders, and its size in bytes."""
    return [(path.name, path.stat().st_size) for path in paths]


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> list[Entry]:
    """Return an entry for each array: its name, and a digest of its dtype, shape and values."""
    return [(name, _digest(array)) for name, array in arrays.items()]


def files_in(entries: Sequence[Entry]) -> set[tuple[str, int]]:
    """Return the name and the size in bytes of each file among the entries."""
    return {(name, size) for name, size in entries if isinstance(size, int)}


def difference(identity: Identity, before: Identity) -> str:
    """Describe in one line how `identity` differs from `before`, its value at the run's start.

    Name one difference. If all entries are equal, say that details are not recorded.
    """
    for split in dict.fromkeys([*before, *identity]):
        now, then = ([tuple(e) for e in each.get(split, ())] for each in (identity, before))
        if now == then:
            continue
        names, earlier = ({name for name, _ in each} for each in (now, then))
        count = f"{len(now)} entries instead of {len(then)}"
        for problem, those in (("is new", names - earlier), ("is missing", earlier - names)):
            if those:
                return f"{min(those)} {problem} in {split}, which has {count}"
        changed = next(
            (a for a, b in zip(now, then, strict=False) if a != b), ("the last entry", 0)
        )
        return f"{changed[0]} in {split} has changed"
    return "the details of the original data are not recorded"


def _digest(array: NDArray[Any]) -> str:
    content = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{content.dtype.str} {content.shape} ".encode())
    digest.update(content.data.cast("B") if content.size else b"")
    return digest.hexdigest()
