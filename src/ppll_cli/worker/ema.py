"""Exponential moving averages of weights. They are evaluated in addition to the weights."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ppll_cli.job.checkpoint import EMA
from ppll_cli.models.unit import Unit


class Ema:
    """Averages of the parameters and of the floating-point buffers of units.

    After optimizer step `step` (counted from 0), an average becomes `d * average + (1 - d) * value`
    with d = `min(decay, (1 + step) / (10 + step))`. At first d is small, so that the initial
    weights are soon forgotten. Buffers are averaged too, because BatchNorm's statistics must match
    the weights.
    """

    def __init__(self, units: Iterable[tuple[Unit, nn.Module]], decay: float) -> None:
        self._decay = decay
        self._live: dict[str, Tensor] = {}  # by name in a checkpoint
        self._places: dict[str, tuple[nn.Module, str]] = {}  # each buffer's layer and name
        for unit, network in units:
            prefix = f"{EMA}{unit.name}."
            for name, tensor in network.state_dict(keep_vars=True).items():
                if tensor.is_floating_point():
                    self._live[prefix + name] = tensor
            for name, place in _buffer_places(network):
                if prefix + name in self._live:
                    self._places[prefix + name] = place
        # By tensor, not by name: a weight that two layers share has one average.
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
        self._find_buffers()
        decay = min(self._decay, (1 + step) / (10 + step))
        if self._averages:
            with torch.no_grad():
                torch._foreach_lerp_([*self._averages.values()], [*self._averages], 1 - decay)

    def swap(self) -> None:
        """Exchange the values of averages and weights. The parameters stay the same objects.

        Call this before and after an evaluation of the averages.
        """
        self._find_buffers()
        for live, average in self._averages.items():
            live.data, average.data = average.data, live.data

    def _find_buffers(self) -> None:
        # A forward may have replaced a buffer by a new tensor.
        found = {name: layer.get_buffer(key) for name, (layer, key) in self._places.items()}
        if any(buffer is not self._live[name] for name, buffer in found.items()):
            averages = {name: self._averages[live] for name, live in self._live.items()}
            self._live |= found
            self._averages = {self._live[name]: average for name, average in averages.items()}

    def saved(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the averages, each with its name in a checkpoint."""
        for name, live in self._live.items():
            yield name, self._averages[live]


def _buffer_places(network: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    for path, layer in network.named_modules(remove_duplicate=False):
        for key, _ in layer.named_buffers(recurse=False):
            yield f"{path}.{key}" if path else key, (layer, key)
