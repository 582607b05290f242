"""Tests units and losses on the CPU, on random values, before a run.

There are five tests, for errors that tracing does not find:

- Dtypes. Models are traced on torch's meta device, on which, for example, a Linear layer accepts
  integers. So a unit or loss is run once if it reads a unit's output that is not float32.
- Split backward passes. One half computes the gradients of inputs, the other those of parameters.
  Operations that use parameters run their backward in both halves. Gradients may be wrong if such
  an operation frees its saved tensors or counts its calls. They may also be wrong if a hook changes
  gradients.
- `recompute=true`. The forward pass runs twice, with equal buffers and random numbers. Gradients
  may be wrong if a unit has other state, such as a Python counter.
- Schedules such as GPipe. Other micro-batches run between a forward and its backward. Gradients
  may be wrong if a forward changes weights or buffers in place, and the backward reads them.
- Replicas. They average a gradient as soon as it is complete. An average may be wrong if a
  backward adds to the gradient of a parameter more than once.

Equal units are tested only once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppll_cli.config.options import as_typed
from ppll_cli.config.settings import Settings
from ppll_cli.errors import ConfigError
from ppll_cli.job.ends import Ends
from ppll_cli.job.halves import backward_to_inputs
from ppll_cli.job.job import Job
from ppll_cli.job.numerics import Numerics
from ppll_cli.job.recompute import recomputed
from ppll_cli.leaves.random_states import seeded
from ppll_cli.leaves.values import ValueSpec, spec_of
from ppll_cli.models.unit import Unit, build_unit
from ppll_cli.predict.timing import batch_like
from ppll_cli.prepare.subject import Subject, recipe_of

SAMPLES = 2

CPU = torch.device("cpu")

_Specs = Mapping[str, ValueSpec]
"""Shape (without the batch dimension) and dtype of tensors, by name."""

_Gradients = list[Tensor | None]

_Way = Callable[[nn.Module, Sequence[Tensor]], None]
"""A function that runs a network forward and backward on leaf tensors."""


def check_units(settings: Settings, subject: Subject) -> None:
    """Check that units can read the dtypes of the tensors that earlier units make.

    Raises:
        ConfigError: A unit fails with the dtype of such a tensor, but not with float32.
    """
    numerics = Numerics(settings.precision, settings.deterministic)
    kinds: dict[object, tuple[Unit, dict[str, ValueSpec], dict[str, str]]] = {}
    for index, (unit, specs) in enumerate(zip(subject.units, subject.ends.before, strict=True)):
        if odd := _not_float32(unit.reads, specs, subject.units[:index]):
            kinds.setdefault(recipe_of(unit, specs), (unit, specs, odd))
    for unit, specs, odd in kinds.values():
        if why := _why_not(numerics, partial(_run_unit, unit), unit.reads, specs, odd):
            model = as_typed("model", settings.model["_target_"])
            remedy = "convert it in forward(), for example by x.float()"
            raise ConfigError(*model, f"unit {unit.name!r} {why}", remedy)


def _run_unit(unit: Unit, values: Mapping[str, Tensor]) -> None:
    build_unit(unit, seed=0)(*unit.inputs(values))


def check_losses(job: Job, subject: Subject) -> None:
    """Check that local losses accept the dtypes of the tensors that units output.

    Raises:
        ConfigError: A loss fails with the dtype of such a tensor, but not with float32.
    """
    for number in range(len(job.layout.modules)):
        if why := why_unreadable(subject.ends, job.layout.modules, number, job.numerics):
            method = as_typed("local", job.local["_target_"])
            remedy = "end the module at another unit (local.cuts), or return float32 there"
            raise ConfigError(*method, f"the auxiliary network of module {number} {why}", remedy)


def why_unreadable(ends: Ends, modules: Sequence[range], number: int, numerics: Numerics) -> str:
    """Return why a module's auxiliary network cannot read the dtypes of its inputs.

    Return "" if it can read them, or if it also fails with float32 in place of these dtypes.

    Args:
        ends: Builds the auxiliary network.
        modules: For each module, the indices of its units.
        number: Number of the module.
        numerics: Says whether networks run under autocast.
    """
    stop, units = modules[number].stop, ends.site.units
    outputs = (spec for traced in ends.traced[:stop] for spec in traced.outputs)
    if stop == len(units) or all(spec.dtype == torch.float32 for spec in outputs):
        return ""
    build, specs = ends.criterion(modules, number)
    with torch.device("meta"):
        reads = build().reads
    odd = _not_float32(reads, specs, units[:stop])
    return _why_not(numerics, lambda values: build()(values), reads, specs, odd) if odd else ""


def _not_float32(reads: Sequence[str], specs: _Specs, units: Sequence[Unit]) -> dict[str, str]:
    names = [name for name in reads if specs[name].dtype != torch.float32]
    makers = {name: unit.name for unit in units for name in unit.writes} if names else {}
    return {name: makers[name] for name in names if name in makers}


def _why_not(
    numerics: Numerics,
    run: Callable[[Mapping[str, Tensor]], object],
    reads: Sequence[str],
    specs: _Specs,
    odd: Mapping[str, str],
) -> str:
    given = {name: specs[name] for name in reads}
    usual = {name: replace(specs[name], dtype=torch.float32) for name in odd}
    error = _error(numerics, run, given)
    if error is None or _error(numerics, run, {**given, **usual}) is not None:
        return ""  # the error has another reason: random inputs may not suit the network
    name, maker = next(iter(odd.items()))
    dtype = str(specs[name].dtype).removeprefix("torch.")
    said = " ".join(str(error).split())
    made = f"cannot read {name!r}, which unit {maker!r} returns as {dtype}"
    return f"{made} ({type(error).__name__}: {said})"


def _error(
    numerics: Numerics, run: Callable[[Mapping[str, Tensor]], object], specs: _Specs
) -> Exception | None:
    try:
        with seeded(0), torch.no_grad(), numerics.autocast(CPU):
            run({name: batch_like(spec, SAMPLES, CPU) for name, spec in specs.items()})
    except Exception as error:  # raised by a user's network
        return error
    return None


def check_halves(
    schedule: tuple[str, object], units: Sequence[Unit], before: Sequence[_Specs]
) -> None:
    """Check that a backward pass in two halves computes the same gradients as an undivided one.

    Args:
        schedule: Key and value of the user's choice, such as `("schedule", "zb_h1")`; the error
            message names them.
        units: The units to check.
        before: For each unit, the tensors that exist before the unit runs.

    Raises:
        ConfigError: The gradients of a unit differ, or its backward pass fails.
    """
    if found := _first_problem(_in_halves, units, before):
        split = f"it splits backwards into two halves, and the split backward of {found}"
        raise ConfigError(*schedule, split, "use schedule=1f1b")


def check_recompute(units: Sequence[Unit], before: Sequence[_Specs]) -> None:
    """Check that recomputation (`recompute=true`) does not change the gradients of a unit.

    `before` has, for each unit, the tensors that exist before the unit runs.

    Raises:
        ConfigError: The gradients of a unit differ, or its backward pass fails.
    """
    if found := _first_problem(_recomputed, units, before):
        problem = f"with a second forward, the backward of {found}"
        raise ConfigError("recompute", True, problem, "use recompute=false")


def check_overlap(
    schedule: tuple[str, object],
    units: Sequence[Unit],
    before: Sequence[_Specs],
    *,
    recompute: bool = False,
) -> None:
    """Check units for schedules that run a unit's forward again before the backward of the first.

    The second forward must not change the gradients of the first. Units that fail on random values
    even without a second forward are not checked.

    Args:
        schedule: Key and value of the user's choice, such as `("schedule", "gpipe")`; the error
            message names them.
        units: The units to check.
        before: For each unit, the tensors that exist before the unit runs.
        recompute: The setting `recompute`.

    Raises:
        ConfigError: The gradients of a unit differ, or its backward pass fails.
    """
    way = partial(_after_another, recompute)
    if found := _first_problem(way, units, before, skip_unable=True):
        order = "it runs other micro-batches between a forward and its backward"
        problem = f"{order}, and then the backward of {found}"
        remedy = "make new tensors in forward() instead of changing buffers or weights in place"
        raise ConfigError(*schedule, problem, f"{remedy}, or use schedule.microbatches=1")


def check_averages(replicas: int, units: Sequence[Unit], before: Sequence[_Specs]) -> None:
    """Check that a unit's backward pass adds to the gradient of each parameter only once.

    Replicas need this, because they average a gradient as soon as it is complete. Units that fail
    on random values are not refused.

    Args:
        replicas: Number of replicas; the error message names it.
        units: The units to check.
        before: For each unit, the tensors that exist before the unit runs.

    Raises:
        ConfigError: The backward pass of a unit adds to a gradient more than once.
    """
    for unit, inputs in _tested(units, before):
        counts: Counter[Tensor] = Counter()
        with suppress(Exception):  # raised by a user's unit
            _gradients(unit, inputs, partial(_counting, counts))
        if max(counts.values(), default=0) > 1:
            problem = (
                "replicas average a gradient as soon as it is complete, but the backward of unit "
                f"{unit.name!r} adds to the gradient of a parameter more than once"
            )
            remedy = "use checkpoint(..., use_reentrant=False) in forward(), or replicas=1"
            raise ConfigError("replicas", replicas, problem, remedy)


def _tested(
    units: Sequence[Unit], before: Sequence[_Specs]
) -> Iterator[tuple[Unit, Sequence[Tensor]]]:
    kinds: dict[object, tuple[Unit, _Specs]] = {}
    for unit, specs in zip(units, before, strict=True):
        kinds.setdefault(recipe_of(unit, specs), (unit, specs))
    for unit, specs in kinds.values():
        yield unit, [batch_like(specs[name], SAMPLES, CPU) for name in unit.reads]


def _first_problem(
    way: _Way, units: Sequence[Unit], before: Sequence[_Specs], *, skip_unable: bool = False
) -> str:
    for unit, inputs in _tested(units, before):
        expected: _Gradients | None = None
        try:
            expected = _gradients(unit, inputs, _whole)
            if not _agrees(way, unit, inputs, expected):
                return f"unit {unit.name!r} gives different gradients"
        except Exception as error:  # raised by a user's unit
            if expected is None and skip_unable:
                continue
            why = " ".join(str(error).split()) or type(error).__name__
            return f"unit {unit.name!r} fails: {why}"
    return ""


def _agrees(way: _Way, unit: Unit, inputs: Sequence[Tensor], expected: _Gradients) -> bool:
    if _same(expected, _gradients(unit, inputs, way)):
        return True
    # With several threads, some operations of torch, such as the backward of `table[index]`, add
    # numbers in another order at each call. So compare again on a single thread.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _same(_gradients(unit, inputs, _whole), _gradients(unit, inputs, way))
    finally:
        torch.set_num_threads(threads)


def _same(these: _Gradients, those: _Gradients) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and _equal(a, b))
        for a, b in zip(these, those, strict=True)
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    # Random values may make both gradients NaN.
    return bool((one.eq(other) | (one.isnan() & other.isnan())).all())


def _gradients(unit: Unit, inputs: Sequence[Tensor], way: _Way) -> _Gradients:
    network = build_unit(unit, seed=0).train()
    leaves = [x.detach().requires_grad_(spec_of(x).differentiable) for x in inputs]
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


def _after_another(recompute: bool, network: nn.Module, leaves: Sequence[Tensor]) -> None:
    forward = partial(recomputed, network, _seed) if recompute else network
    _seed()
    starts = _starts(forward(*leaves))
    forward(*leaves)
    torch.autograd.backward(*starts)


def _counting(counts: Counter[Tensor], network: nn.Module, leaves: Sequence[Tensor]) -> None:
    def count(parameter: Tensor) -> None:
        counts[parameter] += 1

    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
    _whole(network, leaves)


_seed = partial(torch.manual_seed, 0)


def _starts(made: Any) -> tuple[list[Tensor], list[Tensor]]:
    outputs = [x for x in (made if isinstance(made, tuple) else (made,)) if x.requires_grad]
    return outputs, [torch.randn_like(output) for output in outputs]
