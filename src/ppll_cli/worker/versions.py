"""Keeps a unit's weights after each of its latest steps, for losses of earlier modules."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from ppll_cli.models.unit import Unit
from ppll_cli.pipeline.routes import Watch


class Versions:
    """The weights of a unit, without buffers, after each of its latest `count` steps.

    Before the first step, all versions are the initial weights.
    """

    def __init__(self, unit: str, network: nn.Module, count: int) -> None:
        self._unit, self._count = unit, count
        self._now = {name: p.detach() for name, p in network.named_parameters()}
        self._older: deque[Mapping[str, Tensor]] = deque(maxlen=count - 1)  # newest version first
        self.begin()

    def begin(self) -> None:
        """Set all versions to the current weights, before the first step."""
        self._older.extend(_copy(self._now) for _ in range(self._count - 1))

    def before_step(self) -> None:
        """Copy the current weights. Call this before each step, which changes them in place."""
        if self._count > 1:
            self._older.appendleft(_copy(self._now))

    def of_age(self, steps: int) -> Mapping[str, Tensor]:
        """Return the parameters by name, as they were `steps` optimizer steps ago.

        `steps` must be less than the `count` of this object.
        """
        return self._older[steps - 1] if steps else self._now

    def saved(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the older versions' tensors, each with its name in a checkpoint."""
        for age, version in enumerate(self._older, start=1):
            for name, tensor in version.items():
                yield saved_name(self._unit, age, name), tensor


def watched_versions(
    watches: Collection[Watch], units: Mapping[int, tuple[Unit, nn.Module]]
) -> dict[int, Versions]:
    """Make `Versions` for those of a chunk's units whose weights are read by losses.

    Args:
        watches: Says which weights the losses read.
        units: The chunk's units with their networks, by the unit's index.

    Returns:
        The `Versions` by the unit's index.
    """
    found: dict[int, Versions] = {}
    for index, (unit, network) in units.items():
        if lags := [watch.lag for watch in watches if watch.unit == index]:
            found[index] = Versions(unit.name, network, max(lags))
    return found


def saved_name(unit: str, age: int, parameter: str) -> str:
    """Return a checkpoint's name for a unit's parameter as it was `age` steps ago."""
    return f"watched.{unit}.{age}.{parameter}"


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.clone(tensor) for name, tensor in tensors.items()}
