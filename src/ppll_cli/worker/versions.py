"""The weights of a unit as they were after its last steps, kept for losses that watch the unit."""

from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ppll_cli.job.checkpoint import SavedTensors


class Versions:
    """The last versions of a unit's parameters; its buffers are not among them.

    In the beginning all versions are the weights that the unit starts with.

    Args:
        unit: Name of the unit.
        network: The unit's, on its device.
        count: How many versions: the longest lag of those that watch it.
    """

    def __init__(self, unit: str, network: nn.Module, count: int) -> None:
        self._unit, self._count = unit, count
        self._now = {name: p.detach() for name, p in network.named_parameters()}
        self._older: deque[Mapping[str, Tensor]] = deque(maxlen=count - 1)  # the newest one first
        self.begin()

    def begin(self) -> None:
        """Take the present weights for those of all earlier steps, before the first one."""
        if self._count > 1:
            self._older.extend([_copy(self._now)] * (self._count - 1))

    def before_step(self) -> None:
        """Keep the version that the next step changes."""
        if self._count > 1:
            self._older.appendleft(_copy(self._now))

    def of_age(self, steps: int) -> Mapping[str, Tensor]:
        """The parameters by name, as they were so many steps ago."""
        return self._older[steps - 1] if steps else self._now

    def saved(self) -> Iterator[tuple[str, Tensor]]:
        """The older versions for a checkpoint, under names that do not depend on stages."""
        for age, version in enumerate(self._older, start=1):
            for name, tensor in version.items():
                yield saved_name(self._unit, age, name), tensor

    def restore(self, saved: SavedTensors) -> None:
        """Take the older versions from a checkpoint."""
        for age in range(1, self._count):
            version = _copy(self._now)
            for name, tensor in version.items():
                tensor.copy_(saved[saved_name(self._unit, age, name)])
            self._older[age - 1] = version


def saved_name(unit: str, age: int, parameter: str) -> str:
    """The name in a checkpoint of a unit's parameter as it was `age` steps ago."""
    return f"watched.{unit}.{age}.{parameter}"


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies with the same strides."""
    return {name: torch.clone(tensor) for name, tensor in tensors.items()}
