"""What an evaluation finds beside the metric: by class or by picture, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Entry = dict[str, Any]


@dataclass(frozen=True)
class Details:
    """One entry for each class, or for each picture.

    Attributes:
        kind: What an entry is about: "class" or "picture". It is the first key of each, and its
            plural is the name of the list.
        entries: The list. The second key counts something, and the others are results; NaN where
            there is nothing to be found.
        confusion: Of classification: how many samples of each class (row) were taken for which
            class (column).
    """

    kind: str
    entries: Sequence[Entry]
    confusion: Sequence[Sequence[int]] | None = None

    @property
    def plural(self) -> str:
        """The name of the list."""
        return {"class": "classes", "picture": "pictures"}[self.kind]


def by_class(rows: Tensor, names: Sequence[str]) -> Details:
    """Accuracy of each class, and which classes are taken for which.

    Args:
        rows: Label and predicted label of each sample, int64 [N, 2].
        names: Of the classes.
    """
    count = len(names)
    table = torch.bincount(rows[:, 0] * count + rows[:, 1], minlength=count * count)
    confusion = table.view(count, count)
    entries = []
    for label, (name, row) in enumerate(zip(names, confusion, strict=True)):
        samples, right = int(row.sum()), int(row[label])
        accuracy = right / samples if samples else None
        entries.append({"class": name, "samples": samples, "accuracy": accuracy})
    return Details("class", entries, confusion.tolist())
