"""Auxiliary networks made of the backbone's own units, copied in shape with fresh weights."""

from collections.abc import Sequence

import torch
from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.method import Site
from ppll_cli.tasks.task import Copies


def later_units(site: Site) -> range:
    """Indices of the units behind a module, without the model's head, its last unit."""
    return range(site.stop, len(site.units) - 1)


def copies_of(site: Site, indices: Sequence[int], method: str) -> Copies:
    """Copies of units, each of which takes what the one before it makes, and of the model's head.

    A unit whose own input has another shape than what its copy is given is adapted, where the
    model offers that. The head, its last unit, is copied for the features that the model gives it.

    Args:
        site: The module, whose features the first copy takes.
        indices: The units to copy, in order.
        method: Name of the local method, for messages.

    Raises:
        ConfigError: A unit cannot be copied to where the features differ.
    """
    units: list[nn.Module] = []
    shapes = [site.spec.shape]
    for index in indices:
        units.append(copy_unit(site, index, shapes[-1], method))
        shapes.append(_output_shape(units[-1], shapes[-1]))
    head = copy_unit(site, len(site.units) - 1, site.features[-2].shape, method)
    return Copies(units, shapes, head)


def copy_unit(site: Site, index: int, shape: tuple[int, ...], method: str) -> nn.Module:
    """A copy of a unit for features of a shape, with fresh weights.

    It draws dropout and stochastic depth with the unit's own probabilities.

    Args:
        site: The module.
        index: The unit to copy.
        shape: What the copy is given. Where that is the unit's own, its parameters have the same
            names and shapes as the unit's; else it is adapted.
        method: Name of the local method, for messages.

    Raises:
        ConfigError: The unit cannot be copied to these features.
    """
    _check_chained(site, index, method)
    unit = site.units[index]
    own = site.features[index - 1].shape
    if shape == own and len(unit.reads) == 1:
        return unit.build()
    if unit.adapt is None:
        problem = f"cannot copy {unit.name!r}, which takes {list(own)}, to features {list(shape)}"
        raise ConfigError("local", method, problem, "use local=greedy, or give the Unit `adapt`")
    return unit.adapt(shape, site.features[index].shape)


def _check_chained(site: Site, index: int, method: str) -> None:
    """Check that a copy can take what the unit before makes, alone, and makes one tensor."""
    unit, before = site.units[index], site.units[index - 1]
    alone = len(unit.reads) == 1 or unit.adapt is not None
    if unit.reads[:1] != before.writes[:1] or len(unit.writes) > 1 or not alone:
        problem = f"copies units with one input and one output, and {unit.name!r} is another"
        raise ConfigError("local", method, problem, "use local=greedy")


def _output_shape(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a fresh network makes of features of a shape, found with one sample."""
    network.eval()  # no statistics of BatchNorm change, nothing is drawn
    with torch.no_grad():
        output: torch.Tensor = network(torch.zeros(1, *shape))
    network.train()
    return tuple(output.shape[1:])
