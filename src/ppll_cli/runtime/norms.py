"""The gradient norm of the whole model, which clipping and skipping need before any step."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ppll_cli.runtime.chunk import HeldChunk
from ppll_cli.runtime.optimizer import squared_norm


class Norms:
    """A vector of the squared gradient norms of all units, of which a stage writes its own.

    Args:
        units: How many units the model has.
        chunks: The stage's.
        device: Where the vector is.
    """

    def __init__(self, units: int, chunks: Iterable[HeldChunk], device: torch.device) -> None:
        self._units, self._chunks, self._device = units, chunks, device
        self._vector: Tensor | None = None

    @property
    def vector(self) -> Tensor:
        """The vector, float64 [units]; zeros where nobody has written yet."""
        if self._vector is None:
            self._vector = torch.zeros(self._units, dtype=torch.float64, device=self._device)
        return self._vector

    def take(self, received: Tensor) -> None:
        """Go on with what another stage has sent."""
        self._vector = received.clone()

    def add(self) -> None:
        """Write the norms of the stage's units."""
        for chunk in self._chunks:
            for index, parameters in zip(chunk.place.units, chunk.unit_parameters, strict=True):
                self.vector[index] = squared_norm(parameters)

    def total(self) -> Tensor | None:
        """The squared norm of the model's gradient, summed in the order of the units.

        None where no norms were exchanged for this batch.
        """
        if self._vector is None:
            return None
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for norm in self._vector.unbind():
            total = total + norm
        return total

    def end(self) -> None:
        """The batch ends."""
        self._vector = None
