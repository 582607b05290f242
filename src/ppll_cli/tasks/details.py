"""Detailed results of an evaluation, by class or by picture, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Entry = dict[str, Any]


@dataclass(frozen=True)
class Details:
    """The results of each class or of each picture.

    Attributes:
        kind: What an entry describes, "class" or "picture"; also the first key of each entry.
        entries: One entry for each class or picture. The second key is a count (of samples, boxes
            or pixels). The other keys are results, which are NaN or None if not measured.
        confusion: In classification, the number of samples by true class (row) and predicted class
            (column).
    """

    kind: str
    entries: Sequence[Entry]
    confusion: Sequence[Sequence[int]] | None = None

    @property
    def plural(self) -> str:
        """Key of the list of entries in result files."""
        return {"class": "classes", "picture": "pictures"}[self.kind]
