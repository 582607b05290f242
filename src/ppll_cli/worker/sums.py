"""Sums the losses and collects the measurements of a chunk between two reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppll_cli.transport.replicas import Replicas

JOINED = 64
"""Number of tensors in `Sums.measures` at which they are concatenated to one."""


@dataclass
class Sums:
    """Losses and measurements of some batches. They stay on the device, so the host need not wait.

    Attributes:
        loss: Sum of the losses of all samples, a float64 scalar.
        samples: Number of samples; a scalar tensor on the device if the method `over` made this
            object.
        measures: Results of the task's `measure`, [n, columns] each, in the order of the batches.
    """

    loss: Tensor | float = 0.0
    samples: int | Tensor = 0
    measures: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, samples: int, measures: Tensor) -> None:
        """Add a micro-batch: its mean loss (a scalar) and its measurements ([n, columns])."""
        self.loss = self.loss + loss.detach().double() * samples
        self.samples += samples
        self.measures.append(measures)
        if len(self.measures) == JOINED:
            self.measures = [self.rows]

    @property
    def rows(self) -> Tensor:
        """The measurements of all batches, [n, columns]; [0, 0] if there are none."""
        return torch.cat(self.measures) if self.measures else torch.zeros(0, 0)

    def over(self, replicas: Replicas, device: torch.device) -> "Sums":
        """Return the sums over all replicas; every replica has to call this."""
        numbers = torch.zeros(2, dtype=torch.float64, device=device)
        numbers[0], numbers[1] = self.loss, self.samples
        replicas.add(numbers).wait()
        rows = self.rows if self.measures else numbers.new_zeros(0, 0)
        return Sums(numbers[0], numbers[1], [replicas.gather(rows)])

    def plain(self) -> dict[str, Any]:
        """Wait for the device, and return the sums as plain data for a checkpoint."""
        rows = self.rows
        return {
            "loss": float(self.loss),
            "samples": int(self.samples),
            "rows": rows.tolist(),
            "columns": rows.shape[1],
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any], device: torch.device) -> "Sums":
        """Restore sums from a result of `plain`."""
        rows = torch.tensor(plain["rows"], dtype=torch.float64, device=device)
        shaped = rows.reshape(len(plain["rows"]), plain["columns"])
        return cls(plain["loss"], plain["samples"], [shaped])


def split_of(split: str, name: str) -> str:
    """Return the key of the sums of a prediction: "test", or "test.probe" for the name "probe".

    Args:
        split: Name of a split, such as "test".
        name: Name of an additional prediction (see `Criterion.further`); "" for the main one.
    """
    return f"{split}.{name}" if name else split
