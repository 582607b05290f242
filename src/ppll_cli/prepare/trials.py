"""Whether units may run their backward in another way than at once, tried before a run starts.

Zero-bubble schedules run it in two halves, and both run the operations that use parameters: an
operation that frees what it saved, or counts its calls, and a hook that changes gradients compute
something else then. `recompute=true` runs the forward twice: a unit that changes at each call
without a buffer that says so computes something else the second time.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.job.halves import backward_to_inputs
from ppll_cli.job.recompute import recomputed
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import Unit, build_unit
from ppll_cli.predict.timing import batch_like
from ppll_cli.prepare.subject import recipe_of

SAMPLES = 2
"""Of the batch on which units are tried."""

_Gradients = list[Tensor | None]
"""Of a unit's inputs and parameters."""

_Way = Callable[[nn.Module, Sequence[Tensor]], None]
"""A forward and backward of a network on leaves, which leaves gradients in all of them."""


def check_halves(
    schedule: tuple[str, object],
    units: Sequence[Unit],
    before: Sequence[Mapping[str, ValueSpec]],
) -> None:
    """Try each kind of unit in two halves, on random numbers and the CPU.

    Args:
        schedule: Key and value by which the user chose the schedule, for the message.
        units: The model's units.
        before: For each unit, what is there before it.

    Raises:
        ConfigError: The gradients of a unit's halves are not those of its whole backward.
    """
    if found := _otherwise(_in_halves, units, before):
        name, why = found
        problem = f"it runs backwards in two halves; that of unit {name!r} {why}"
        raise ConfigError(*schedule, problem, "use schedule=1f1b")


def check_recompute(units: Sequence[Unit], before: Sequence[Mapping[str, ValueSpec]]) -> None:
    """Try each kind of unit with a second forward pass, on random numbers and the CPU.

    Args:
        units: The model's units.
        before: For each unit, what is there before it.

    Raises:
        ConfigError: The gradients of a unit are not those after a single forward pass.
    """
    if found := _otherwise(_recomputed, units, before):
        name, why = found
        problem = f"the forward runs twice; with that the backward of unit {name!r} {why}"
        raise ConfigError("recompute", True, problem, "use recompute=false")


def _otherwise(
    way: _Way, units: Sequence[Unit], before: Sequence[Mapping[str, ValueSpec]]
) -> tuple[str, str] | None:
    """The first unit that cannot go this way, and what it does instead; None: all of them can."""
    tried = set()
    for unit, specs in zip(units, before, strict=True):
        recipe = recipe_of(unit, specs)
        if recipe in tried:
            continue
        tried.add(recipe)
        inputs = [batch_like(specs[n], SAMPLES, torch.device("cpu")) for n in unit.reads]
        try:
            if not _same(_gradients(unit, inputs, _whole), _gradients(unit, inputs, way)):
                return unit.name, "gives other gradients"
        except RuntimeError as error:
            return unit.name, f"fails: {' '.join(str(error).split())}"
    return None


def _same(these: _Gradients, those: _Gradients) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(these, those, strict=True)
    )


def _gradients(unit: Unit, inputs: Sequence[Tensor], way: _Way) -> _Gradients:
    """The gradients of a unit, each time with the same weights and random numbers."""
    network = build_unit(unit, seed=0).train()
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    with torch.random.fork_rng(devices=[]):
        way(network, leaves)
    return [tensor.grad for tensor in (*leaves, *network.parameters())]


def _whole(network: nn.Module, leaves: Sequence[Tensor]) -> None:
    _seed()
    torch.autograd.backward(*_starts(network(*leaves)))


def _in_halves(network: nn.Module, leaves: Sequence[Tensor]) -> None:
    _seed()
    starts = _starts(network(*leaves))
    learnt = [leaf for leaf in leaves if leaf.requires_grad]
    weights = [p for p in network.parameters() if p.requires_grad]
    backward_to_inputs(*starts, learnt, weights).run()


def _recomputed(network: nn.Module, leaves: Sequence[Tensor]) -> None:
    torch.autograd.backward(*_starts(recomputed(network, _seed, *leaves)))


_seed = partial(torch.manual_seed, 0)


def _starts(made: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Where a backward begins, and random gradients."""
    outputs = [x for x in (made if isinstance(made, tuple) else (made,)) if x.requires_grad]
    return outputs, [torch.randn_like(output) for output in outputs]
