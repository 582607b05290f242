"""Exponential moving averages of weights, which are evaluated beside the weights themselves."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ppll_cli.job.checkpoint import EMA, SavedTensors
from ppll_cli.models.unit import Unit


class Ema:
    """Averages of the parameters of units, and of their buffers of floating-point numbers.

    After each optimizer step an average becomes `d * average + (1 - d) * value`. In the first steps
    d rises from 0.1 to `decay`, as `min(decay, (1 + step) / (10 + step))`, so that the weights that
    the seed gave are forgotten. Buffers, such as BatchNorm's statistics, are averaged like weights,
    because they belong to them.

    Args:
        units: The units and their networks.
        decay: The share of an average that stays after a step, above 0 and below 1.
    """

    def __init__(self, units: Iterable[tuple[Unit, nn.Module]], decay: float) -> None:
        self._decay = decay
        self._names: dict[str, int] = {}  # tied weights have one number
        self._live: list[Tensor] = []
        numbers: dict[int, int] = {}
        for unit, network in units:
            for name, tensor in network.state_dict(keep_vars=True).items():
                if tensor.is_floating_point():
                    number = numbers.setdefault(id(tensor), len(numbers))
                    self._names[f"{EMA}{unit.name}.{name}"] = number
                    if number == len(self._live):
                        self._live.append(tensor)
        self._averages = [tensor.detach().clone() for tensor in self._live]

    @property
    def buffers(self) -> list[Tensor]:
        """The averages of buffers."""
        pairs = zip(self._live, self._averages, strict=True)
        return [average for live, average in pairs if not isinstance(live, nn.Parameter)]

    def begin(self) -> None:
        """Begin at the weights that the units have now."""
        with torch.no_grad():
            torch._foreach_copy_(self._averages, self._live)

    def update(self, step: int) -> None:
        """Take the weights that the units have now into the averages.

        Args:
            step: How many optimizer steps there were before the one that made them.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._live, 1 - decay)

    def swap(self) -> None:
        """Exchange averages and weights: the units compute with the averages until the next swap.

        Parameters stay the same objects, which optimizers and hooks know.
        """
        for live, average in zip(self._live, self._averages, strict=True):
            live.data, average.data = average.data, live.data

    def saved(self) -> Iterator[tuple[str, Tensor]]:
        """The averages under the names that they have in a checkpoint."""
        for name, number in self._names.items():
            yield name, self._averages[number]

    def restore(self, saved: SavedTensors) -> None:
        """Take the averages from a checkpoint."""
        for name, number in self._names.items():
            self._averages[number].copy_(saved[name])
