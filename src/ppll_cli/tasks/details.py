"""Detailed results of an evaluation, by class or by picture, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Entry = dict[str, Any]


@dataclass(frozen=True)
class Details:
    """The results of each class or of each picture.

    Attributes:
        kind: What an entry describes, "class" or "picture". This word is the first key of each
            entry, and its plural is the name of the list in files.
        entries: One entry for each class or picture. The second key is a count, and the other keys
            are results, which are NaN or None if nothing could be measured.
        confusion: In classification, the number of samples by true class (row) and predicted class
            (column).
    """

    kind: str
    entries: Sequence[Entry]
    confusion: Sequence[Sequence[int]] | None = None

    @property
    def plural(self) -> str:
        """Name of the list of entries."""
        return {"class": "classes", "picture": "pictures"}[self.kind]


def by_class(rows: Tensor, names: Sequence[str]) -> Details:
    """Return the accuracy of each class, and the confusion matrix, from rows of `detail`."""
    count = len(names)
    table = torch.bincount(rows[:, 0] * count + rows[:, 1], minlength=count * count)
    confusion = table.view(count, count)
    entries = []
    for label, (name, row) in enumerate(zip(names, confusion, strict=True)):
        samples, right = int(row.sum()), int(row[label])
        accuracy = right / samples if samples else None
        entries.append({"class": name, "samples": samples, "accuracy": accuracy})
    return Details("class", entries, confusion.tolist())
