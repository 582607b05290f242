"""Names that were meant. Imports nothing heavy."""

import difflib
from collections.abc import Iterable


def meant(name: str, names: Iterable[str]) -> str:
    """The nearest of the names as a question to put before what is possible, if one is near."""
    near = difflib.get_close_matches(name, [*names], n=1, cutoff=0.65)
    return f"did you mean {near[0]}? " if near and near[0] != name else ""
