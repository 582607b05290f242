"""Checks that units may run their backward in two halves, as zero-bubble schedules do.

Both halves run the operations that use parameters. So a unit's gradients change if such an
operation frees what it saved or counts its calls, or if hooks change gradients.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.job.halves import backward_to_inputs
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import Unit, build_unit
from ppll_cli.predict.timing import batch_like
from ppll_cli.prepare.subject import recipe_of

SAMPLES = 2
"""Number of samples of the batch on which units are tried."""


def check_halves(
    schedule: tuple[str, object],
    units: Sequence[Unit],
    before: Sequence[Mapping[str, ValueSpec]],
) -> None:
    """Compare whole and split backwards of each kind of unit on random numbers, on the CPU.

    Args:
        schedule: Key and value by which the user chose the schedule, for the message.
        units: The model's units.
        before: For each unit, shape and dtype of each tensor that exists before it.

    Raises:
        ConfigError: A unit's split backward fails, or gives other gradients than its whole one.
    """
    tried = set()
    for unit, specs in zip(units, before, strict=True):
        recipe = recipe_of(unit, specs)
        if recipe in tried:
            continue
        tried.add(recipe)
        inputs = [batch_like(specs[n], SAMPLES, torch.device("cpu")) for n in unit.reads]
        try:
            same = _same_gradients(unit, inputs)
        except RuntimeError as error:
            same, why = False, f"fails: {error}"
        else:
            why = "gives other gradients"
        if not same:
            problem = f"it runs backwards in two halves; that of unit {unit.name!r} {why}"
            raise ConfigError(*schedule, problem, "use schedule=1f1b")


def _same_gradients(unit: Unit, inputs: Sequence[Tensor]) -> bool:
    whole, halves = (_gradients(unit, inputs, split) for split in (False, True))
    return all(
        a is b is None or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(whole, halves, strict=True)
    )


def _gradients(unit: Unit, inputs: Sequence[Tensor], split: bool) -> list[Tensor | None]:
    """Return the gradients of a unit's inputs and parameters; all random numbers are fixed.

    Args:
        unit: The unit.
        inputs: Its inputs.
        split: Whether to run the backward in two halves.
    """
    network = build_unit(unit, seed=0).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
        made = network(*leaves)
        outputs = [x for x in (made if isinstance(made, tuple) else (made,)) if x.requires_grad]
        given = [torch.randn_like(output) for output in outputs]
        if split:
            learnt = [leaf for leaf in leaves if leaf.requires_grad]
            weights = [p for p in network.parameters() if p.requires_grad]
            backward_to_inputs(outputs, given, learnt, weights).run()
        else:
            torch.autograd.backward(outputs, given)
    return [tensor.grad for tensor in (*leaves, *network.parameters())]
