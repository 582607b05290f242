"""Computes the gradient norm of the whole model, for clipping, skipping steps and logs."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ppll_cli.job.optimizer import squared_norm
from ppll_cli.worker.networks import Networks


class Norms:
    """A vector with the squared gradient norm of every unit; each stage writes its own units."""

    def __init__(self, units: int, chunks: Iterable[Networks], device: torch.device) -> None:
        self._units, self._chunks, self._device = units, chunks, device
        self._vector: Tensor | None = None
        self._total: Tensor | None = None

    @property
    def vector(self) -> Tensor:
        """The vector, float64 [units]; an element is zero until it is written."""
        if self._vector is None:
            self._vector = torch.zeros(self._units, dtype=torch.float64, device=self._device)
        return self._vector

    def take(self, received: Tensor) -> None:
        """Replace the vector by a vector from another stage, float64 [units]."""
        self._vector, self._total = received.clone(), None

    def add(self) -> None:
        """Write the squared norms of the stage's units that have gradients."""
        self._total = None
        for chunk in self._chunks:
            for index, parameters in zip(chunk.place.units, chunk.unit_parameters, strict=True):
                if any(parameter.grad is not None for parameter in parameters):
                    self.vector[index] = squared_norm(parameters)

    def total(self) -> Tensor | None:
        """Return the squared gradient norm of the model, summed in the order of the units.

        It is a float64 scalar; None if no norms were exchanged for this batch.
        """
        if self._vector is not None and self._total is None:
            self._total = torch.zeros((), dtype=torch.float64, device=self._device)
            for norm in self._vector.unbind():
                self._total = self._total + norm
        return self._total

    def end(self) -> None:
        """Drop the norms of this batch."""
        self._vector = self._total = None
