"""Copies units of the backbone for auxiliary networks. A copy gets new random weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.method import Site
from ppll_cli.tasks.task import Shape


@dataclass(frozen=True)
class Copies:
    """Copies of units and of the model's head, from which an auxiliary network is made."""

    units: Sequence[nn.Module]  # copies of units after a module, in order; may be empty
    shapes: Sequence[Shape]  # shapes of the module's features and of each copy's output
    head: nn.Module  # a copy of the model's head, which reads the output of the last copy


class CopiedNetwork(nn.Module):
    """Copied units in sequence, and a head, which may also read features of the bank."""

    def __init__(self, units: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.units, self.head = nn.Sequential(*units), head

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Return the prediction for a module's output `x` and features of the bank."""
        prediction: Tensor = self.head(self.units(x), *bank)
        return prediction


def later_units(site: Site) -> range:
    """Return the indices of the units after a module, except the model's head (its last unit)."""
    return range(site.stop, len(site.units) - 1)


def copies_of(site: Site, indices: Sequence[int], method: str) -> Copies:
    """Copy some units and the model's head, for the auxiliary network of the module in `site`.

    The first copy reads the module's output. Each further copy reads the output of the copy before
    it. The copied head has the input shape of the model's head.

    Args:
        site: The module, and all units of the model.
        indices: Indices of the units to copy, in order; may be empty.
        method: Name of the local method, for error messages.

    Raises:
        ConfigError: A copy is not possible (see `copy_unit`).
    """
    units: list[nn.Module] = []
    shapes = [site.spec.shape]
    for index in indices:
        units.append(copy_unit(site, index, shapes[-1], method))
        shapes.append(_output_shape(units[-1], shapes[-1]))
    head = copy_unit(site, len(site.units) - 1, site.features[-2].shape, method)
    return Copies(units, shapes, head)


def copy_unit(site: Site, index: int, shape: Shape, method: str) -> nn.Module:
    """Copy a unit, with new random weights, so that it reads features of a given shape.

    If the unit reads a single tensor, which has this shape in the model, the unit is built again.
    Otherwise, the unit's `adapt` makes the copy.

    Args:
        site: Has all units of the model, and the shapes of their outputs.
        index: The unit's index in the model.
        shape: Shape of the features, without the batch dimension.
        method: Name of the local method, for error messages.

    Raises:
        ConfigError: The unit does not read the output of the unit before it, or has several
            outputs, or needs an `adapt` and has none.
    """
    _check_chained(site, index, method)
    unit = site.units[index]
    own = site.features[index - 1].shape
    if shape == own and len(unit.reads) == 1:
        return unit.build()
    if unit.adapt is None:
        problem = f"cannot copy {unit.name!r}, which takes {list(own)}, for features {list(shape)}"
        raise ConfigError("local", method, problem, "use local=greedy, or give the Unit `adapt`")
    return unit.adapt(shape, site.features[index].shape)


def _check_chained(site: Site, index: int, method: str) -> None:
    unit, before = site.units[index], site.units[index - 1]
    alone = len(unit.reads) == 1 or unit.adapt is not None
    if unit.reads[:1] != before.writes[:1] or len(unit.writes) > 1 or not alone:
        problem = f"cannot copy {unit.name!r}: copied units have one input, which is the output "
        problem += "of the unit before, and one output"
        raise ConfigError("local", method, problem, "use local=greedy")


def _output_shape(network: nn.Module, shape: Shape) -> Shape:
    network.eval()  # keeps BatchNorm's statistics, and needs no random numbers
    with torch.no_grad():
        output: torch.Tensor = network(torch.zeros(1, *shape))
    network.train()
    return tuple(output.shape[1:])
