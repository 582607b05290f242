"""Exponential moving averages of weights, which the run evaluates too."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ppll_cli.job.checkpoint import EMA
from ppll_cli.models.unit import Unit


class Ema:
    """Averages of the parameters and of the floating-point buffers of units.

    After each optimizer step an average becomes `d * average + (1 - d) * value`. d is `min(decay,
    (1 + step) / (10 + step))`, so that the averages soon forget the initial weights. Buffers are
    averaged too, because BatchNorm's statistics must match the weights.
    """

    def __init__(self, units: Iterable[tuple[Unit, nn.Module]], decay: float) -> None:
        self._decay = decay
        self._live = {
            f"{EMA}{unit.name}.{name}": tensor
            for unit, network in units
            for name, tensor in network.state_dict(keep_vars=True).items()
            if tensor.is_floating_point()
        }
        # By tensor, not by name: a weight that two units share has one average.
        self._averages = {live: live.detach().clone() for live in self._live.values()}

    @property
    def buffers(self) -> list[Tensor]:
        """The averages of buffers."""
        pairs = self._averages.items()
        return [average for live, average in pairs if not isinstance(live, nn.Parameter)]

    def begin(self) -> None:
        """Set the averages to the current weights of the units."""
        if self._averages:  # torch refuses empty lists
            with torch.no_grad():
                torch._foreach_copy_([*self._averages.values()], [*self._averages])

    def update(self, step: int) -> None:
        """Update the averages after optimizer step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        if self._averages:
            with torch.no_grad():
                torch._foreach_lerp_([*self._averages.values()], [*self._averages], 1 - decay)

    def swap(self) -> None:
        """Exchange averages and weights, but keep the parameter objects, which optimizers use."""
        for live, average in self._averages.items():
            live.data, average.data = average.data, live.data

    def saved(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the averages, each with its name in a checkpoint."""
        for name, live in self._live.items():
            yield name, self._averages[live]

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Load the averages from a checkpoint."""
        for name, live in self._live.items():
            self._averages[live].copy_(saved[name])
