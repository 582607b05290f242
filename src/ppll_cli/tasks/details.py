"""Detailed results of an evaluation, by class or by picture, as plain data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppll_cli.leaves.names import class_path

Entry = dict[str, Any]

PLURALS = {"class": "classes", "picture": "pictures"}
"""For each kind of entry, the key under which result files list the entries."""


@dataclass(frozen=True)
class Details:
    """The results of each class or of each picture.

    Attributes:
        kind: What an entry describes: "class" or "picture".
        entries: One dictionary for each class or picture, for example {"class": "cat", "samples":
            100, "accuracy": 0.9}: first its name, whose key is the value of `kind`; then a number
            of samples, boxes or pixels; then results. A result is NaN or None if it was not
            measured.
        confusion: In classification, the number of samples by true class (row) and predicted class
            (column).
    """

    kind: str
    entries: Sequence[Entry]
    confusion: Sequence[Sequence[int]] | None = None

    @property
    def plural(self) -> str:
        """The key under which result files list the entries: "classes" or "pictures"."""
        return PLURALS[self.kind]


def detailed(task: Any, rows: Tensor, names: Sequence[str]) -> Details:
    """Call the task's method `details`, and return its result.

    `ppll_cli.tasks.task.Task` explains the arguments.

    Raises:
        TypeError: The method did not return a `Details`, or its `kind` is unknown, or its values
            are no plain data.
    """
    found = task.details(rows, names)
    method = f"{class_path(type(task))}.details()"
    if not isinstance(found, Details):
        kind = type(found).__name__
        raise TypeError(f"{method} returned {kind} instead of {class_path(Details)}")
    if found.kind not in PLURALS:
        raise TypeError(f"{method} returned the kind {found.kind!r} instead of {_KINDS}")
    try:
        json.dumps([*found.entries, found.confusion])
    except TypeError as error:
        wanted = "return texts, numbers, booleans, None, lists and dictionaries"
        problem = f"returned values that are not plain data: {error}; {wanted}"
        raise TypeError(f"{method} {problem}") from None
    return found


_KINDS = " or ".join(map(repr, PLURALS))
