"""Tests, before a run, whether units and losses can read tensors of other dtypes than float32.

Models are traced on torch's meta device, which does not check all dtypes: there a Linear layer
accepts integers. So a unit or loss runs once on the CPU if it reads such a tensor from a unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ppll_cli.config.options import as_typed
from ppll_cli.config.settings import Settings
from ppll_cli.errors import ConfigError
from ppll_cli.job.ends import Ends
from ppll_cli.job.job import Job
from ppll_cli.job.numerics import Numerics
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import Criterion
from ppll_cli.models.unit import Unit, build_unit, seeded
from ppll_cli.predict.timing import batch_like
from ppll_cli.prepare.subject import Subject, recipe_of
from ppll_cli.prepare.trials import SAMPLES

CPU = torch.device("cpu")

_Run = Callable[[Mapping[str, Tensor]], object]
"""A function that builds a network, and runs it on tensors by name."""


def check_units(settings: Settings, subject: Subject) -> None:
    """Check that units can read the dtypes of the tensors that earlier units make.

    Raises:
        ConfigError: A unit fails with the dtype of such a tensor, but not with float32.
    """
    numerics = Numerics(settings.precision, settings.deterministic)
    specs, makers, tried = dict(subject.ends.batch), dict[str, str](), set()
    for unit, traced in zip(subject.units, subject.ends.traced, strict=True):
        recipe, odd = recipe_of(unit, specs), _odd(unit.reads, specs, makers)
        if odd and recipe not in tried:
            tried.add(recipe)
            if why := _why_not(numerics, partial(_run_unit, unit), unit.reads, specs, odd):
                model = as_typed("model", settings.model["_target_"])
                remedy = "convert it in forward(), for example by x.float()"
                raise ConfigError(*model, f"unit {unit.name!r} {why}", remedy)
        specs.update(zip(unit.writes, traced.outputs, strict=True))
        makers.update(dict.fromkeys(unit.writes, unit.name))


def check_losses(job: Job, subject: Subject) -> None:
    """Check that local losses can read the dtypes of the tensors that units make.

    Raises:
        ConfigError: A loss fails with the dtype of such a tensor, but not with float32.
    """
    for number in range(len(job.layout.modules)):
        if why := why_unreadable(subject.ends, job.layout.modules, number, job.numerics):
            method = as_typed("local", job.local["_target_"])
            remedy = "end the module at another unit (local.cuts), or return float32 there"
            raise ConfigError(*method, f"the auxiliary network of module {number} {why}", remedy)


def why_unreadable(ends: Ends, modules: Sequence[range], number: int, numerics: Numerics) -> str:
    """Return why a module's auxiliary network cannot read a unit's output; empty if it can."""
    stop, units = modules[number].stop, ends.site.units
    outputs = (spec for traced in ends.traced[:stop] for spec in traced.outputs)
    if stop == len(units) or all(spec.dtype == torch.float32 for spec in outputs):
        return ""
    build, specs = ends.criterion(modules, number)
    with torch.device("meta"):
        reads = build().reads
    odd = _odd(reads, specs, {name: unit.name for unit in units[:stop] for name in unit.writes})
    return _why_not(numerics, partial(_run_criterion, build), reads, specs, odd) if odd else ""


def _odd(
    reads: Sequence[str], specs: Mapping[str, ValueSpec], makers: Mapping[str, str]
) -> dict[str, str]:
    """Map the name of each tensor in `reads` that is not float32 to the unit that made it.

    `makers` maps names of tensors to the units that made them. Other tensors are left out.
    """
    names = [name for name in reads if specs[name].dtype != torch.float32]
    return {name: makers[name] for name in names if name in makers}


def _why_not(
    numerics: Numerics,
    run: _Run,
    reads: Sequence[str],
    specs: Mapping[str, ValueSpec],
    odd: Mapping[str, str],
) -> str:
    """Return why a network cannot read the tensors in `odd`, whose dtypes are not float32.

    The text is empty if the network can read them, or if it fails with float32 too.
    """
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


def _error(numerics: Numerics, run: _Run, specs: Mapping[str, ValueSpec]) -> Exception | None:
    """Run a network on random values, and return the exception that it raises, if any."""
    try:
        with seeded(0), torch.no_grad(), numerics.autocast(CPU):
            run({name: batch_like(spec, SAMPLES, CPU) for name, spec in specs.items()})
    except Exception as error:  # raised by a user's network
        return error
    return None


def _run_unit(unit: Unit, values: Mapping[str, Tensor]) -> None:
    build_unit(unit, seed=0)(*unit.inputs(values))


def _run_criterion(build: Callable[[], Criterion], values: Mapping[str, Tensor]) -> None:
    build()(values)
