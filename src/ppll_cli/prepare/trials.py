"""Tests, before a run, whether split backward or repeated forward passes give right gradients.

Both halves of a split backward pass run the operations that use parameters. Gradients may be wrong
if such an operation frees its saved tensors or counts its calls, or if a hook changes gradients.
With `recompute=true`, the forward pass runs twice, with equal buffers and random numbers. Gradients
may be wrong if a unit keeps other state, such as a Python counter.
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

_Gradients = list[Tensor | None]

_Way = Callable[[nn.Module, Sequence[Tensor]], None]
"""A function that runs a network forward and backward on leaf tensors."""


def check_halves(
    schedule: tuple[str, object], units: Sequence[Unit], before: Sequence[Mapping[str, ValueSpec]]
) -> None:
    """Check that a backward pass in two halves gives the gradients of an undivided one.

    Each kind of unit is tested with random inputs, on the CPU. `schedule` is the key and the value
    by which the user chose the schedule. `before` has the tensors that exist before each unit.

    Raises:
        ConfigError: The gradients of a unit differ, or its backward pass fails.
    """
    if found := _first_unfit(_in_halves, units, before):
        name, why = found
        problem = (
            f"it splits backwards into two halves, and the split backward of unit {name!r} {why}"
        )
        raise ConfigError(*schedule, problem, "use schedule=1f1b")


def check_recompute(units: Sequence[Unit], before: Sequence[Mapping[str, ValueSpec]]) -> None:
    """Check that a unit's gradients stay equal if its forward pass runs twice.

    Each kind of unit is tested as in `check_halves`, which also explains `before`.

    Raises:
        ConfigError: The gradients of a unit differ, or its backward pass fails.
    """
    if found := _first_unfit(_recomputed, units, before):
        name, why = found
        problem = f"with a second forward, the backward of unit {name!r} {why}"
        raise ConfigError("recompute", True, problem, "use recompute=false")


def _first_unfit(
    way: _Way, units: Sequence[Unit], before: Sequence[Mapping[str, ValueSpec]]
) -> tuple[str, str] | None:
    """Return name and problem of the first unit with wrong gradients; None if all are right."""
    tried = set()
    for unit, specs in zip(units, before, strict=True):
        recipe = recipe_of(unit, specs)
        if recipe in tried:
            continue
        tried.add(recipe)
        inputs = [batch_like(specs[n], SAMPLES, torch.device("cpu")) for n in unit.reads]
        try:
            if not _same(_gradients(unit, inputs, _whole), _gradients(unit, inputs, way)):
                return unit.name, "gives different gradients"
        except Exception as error:  # raised by a user's unit
            return unit.name, f"fails: {' '.join(str(error).split()) or type(error).__name__}"
    return None


def _same(these: _Gradients, those: _Gradients) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(these, those, strict=True)
    )


def _gradients(unit: Unit, inputs: Sequence[Tensor], way: _Way) -> _Gradients:
    """Return a unit's gradients. Each call begins with the same weights and random numbers."""
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
    """Return the outputs at which a backward pass starts, and a random gradient for each."""
    outputs = [x for x in (made if isinstance(made, tuple) else (made,)) if x.requires_grad]
    return outputs, [torch.randn_like(output) for output in outputs]
