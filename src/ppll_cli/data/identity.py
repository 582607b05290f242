"""What identifies the data that a run is trained on, wherever the files are.

A data set says it by a method `identity(splits)`: for each split, the entries that are to be the
same, in order. An entry is a file's name with its size in bytes, or a name with a digest of what
was read.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Entry = tuple[str, int | str]

Identity = Mapping[str, Sequence[Entry]]
"""The entries of each split."""


def of_files(paths: Iterable[Path]) -> list[Entry]:
    """Files by their names, without folders, and sizes.

    Raises:
        OSError: There is no such file.
    """
    return [(path.name, path.stat().st_size) for path in paths]


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> list[Entry]:
    """Arrays by their names and a digest of what is in them."""
    return [(name, _digest(array)) for name, array in arrays.items()]


def difference(identity: Identity, before: Identity) -> str:
    """In what data differ from those of an earlier time, in a line that names an entry.

    Args:
        identity: What identifies the data now.
        before: What identified them then.
    """
    for split in dict.fromkeys([*before, *identity]):
        now, then = ([tuple(e) for e in each.get(split, ())] for each in (identity, before))
        if now == then:
            continue
        names, earlier = ({name for name, _ in each} for each in (now, then))
        count = f"{len(now)} and not {len(then)} entries"
        for problem, those in (("is new", names - earlier), ("is missing", earlier - names)):
            if those:
                return f"{min(those)} {problem} in {split}, which has {count}"
        changed = next((a for a, b in zip(now, then, strict=False) if a != b), ("the last", 0))
        return f"{changed[0]} in {split} is another one"
    return "what the run was started with is not known in detail"


def _digest(array: NDArray[Any]) -> str:
    content = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{content.dtype.str} {content.shape} ".encode())
    digest.update(content.data.cast("B") if content.size else b"")
    return digest.hexdigest()
