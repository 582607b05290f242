"""Cuts a model into modules and stages.

Under local learning, `local.cuts` or `local.modules` fixes the modules. Without both, each stage is
a module.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from typing import Any

from ppll_cli.config.options import as_typed
from ppll_cli.config.settings import Settings
from ppll_cli.config.targets import blaming
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.names import counted
from ppll_cli.models.trace import Cost
from ppll_cli.pipeline.layout import Layout, cut_at
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.solver import balance, solve
from ppll_cli.pipeline.validation import whole
from ppll_cli.predict.costs import bytes_of
from ppll_cli.predict.profile import Measured, Profile
from ppll_cli.prepare.subject import Subject
from ppll_cli.prepare.trials import why_unreadable

MOST_CHUNKS = 10_000
"""Largest accepted number of chunks. A user's `layout()` may never end."""

BACKWARD = 3
"""Cost of a forward and backward pass, divided by the cost of the forward pass. For each matrix
product of the forward pass, the backward pass has two: for gradients of weights and of inputs."""

UNREADABLE_S = 1e9
"""Assumed seconds of an auxiliary network that cannot read its module's output. A cut with such a
network is chosen only if there is no other cut, and is refused later."""

STEP_FLOPS = 10
"""Approximate FLOPs of the optimizer's step for one parameter."""

Auxiliary = Callable[[Sequence[range], int], float]
"""Returns the cost of a module's auxiliary network, given the units of all modules and the number
of the module."""


@dataclass(frozen=True)
class Weights:
    """The costs that a partition balances, all in the same unit of measure.

    Attributes:
        units: Cost of each unit of the model.
        auxiliary: Returns the cost of a module's auxiliary network; None if it does not count.
        copy: Returns the cost of sending a unit's inputs from the stage before, given the index of
            the unit; None if it does not count.
    """

    units: Sequence[float]
    auxiliary: Auxiliary | None = None
    copy: Callable[[int], float] | None = None


def weights(settings: Settings, subject: Subject, profile: Profile | None) -> Weights:
    """Return the costs that `settings.partition` balances.

    If `profile` is given, the costs are the times that it measures.
    """
    units, ends = subject.costs, subject.ends
    batch_size = settings.batch_size / settings.replicas  # samples of a worker's optimizer step
    if profile is not None:
        return _measured_weights(profile, len(units), batch_size)
    if settings.partition.name == "params":
        return Weights([unit.params for unit in units])
    if settings.partition.name == "flops":

        def flops(cost: Cost) -> float:
            return BACKWARD * cost.flops + STEP_FLOPS * cost.params / batch_size

        def auxiliary(modules: Sequence[range], module: int) -> float:
            return flops(ends.cost(modules, module))

        return Weights([flops(unit) for unit in units], auxiliary)
    return Weights([1.0] * len(units))


def _measured_weights(profile: Profile, units: int, batch_size: float) -> Weights:
    def seconds(part: Measured) -> float:
        # The times are for `samples` samples, but one optimizer step is for `batch_size` samples.
        step_s = part.params * profile.step_s * profile.setup.samples / batch_size
        return part.forward_s + part.backward_s + step_s

    @cache
    def copy(stop: int) -> float:
        specs, reads = profile.ends.before[stop], profile.ends.site.units[stop].reads
        return profile.copy(profile.setup.samples * bytes_of(specs[name] for name in reads))

    def auxiliary(modules: Sequence[range], module: int) -> float:
        if why_unreadable(profile.ends, modules, module, profile.setup.numerics):
            return UNREADABLE_S
        return seconds(profile.auxiliary(modules, module))

    return Weights([seconds(profile.unit(index)) for index in range(units)], auxiliary, copy)


def cut(settings: Settings, schedule: Schedule, subject: Subject, weights: Weights) -> Layout:
    """Cut the model into chunks, and place the chunks on stages.

    Raises:
        ConfigError: There are too few units or modules, or the settings ask for an impossible cut.
    """
    names, asked = subject.names, settings.stages_asked
    whole = range(len(names))
    modules = _fixed_modules(settings, subject) if schedule.local else None
    atoms = modules or [range(index, index + 1) for index in whole]
    if schedule.one_stage and (modules or not schedule.local):
        return Layout.contiguous(modules or [whole], [whole])
    stage_of = placed(schedule, asked)
    there = f"the model has only {counted(len(names), 'unit')}"
    if asked > len(names):
        problem = f"makes {asked} stages, but {there}"
        remedy = f"use gpus={len(names) * settings.replicas} at most"
        raise ConfigError("gpus", settings.devices_asked, problem, remedy)
    if len(stage_of) > len(names):
        problem = f"needs {len(stage_of)} chunks, but {there}"
        remedy = "use fewer gpus"
        remedy += " or a smaller schedule.chunks" if "chunks" in settings.schedule else ""
        raise ConfigError(*as_typed("schedule", settings.schedule["_target_"]), problem, remedy)
    if asked > len(atoms):
        only = "there is only" if len(atoms) == 1 else "there are only"
        problem = f"makes {asked} stages, but {only} {counted(len(atoms), 'module')}"
        remedy = f"use gpus={len(atoms) * settings.replicas} at most"
        if settings.resume is None:  # a resumed run keeps its modules
            by_count = settings.local.get("cuts") is None
            more = (
                f"local.modules={asked} at least" if by_count else "name more units in local.cuts"
            )
            remedy += f", or {more}"
        raise ConfigError("gpus", settings.devices_asked, problem, remedy)
    if settings.partition.name == "manual":
        stages = _manual(settings, names, atoms, len(stage_of))
    elif schedule.local and modules is None and weights.auxiliary is not None:
        stages = _stages_as_modules(weights, weights.auxiliary, asked)
    else:
        stages = grouped(weights, atoms, modules, len(stage_of))
    if not schedule.local:
        return Layout.spread(stages, stage_of)
    return Layout.contiguous(modules or stages, [whole] if schedule.one_stage else stages)


def _fixed_modules(settings: Settings, subject: Subject) -> list[range] | None:
    given, count = settings.local.get("cuts"), settings.local.get("modules")
    names = subject.names
    if given is not None:
        cuts = _named_cuts(given, subject.partitions) if isinstance(given, str) else given
        if count is not None and count != len(cuts) + 1:
            problem = f"local.cuts makes {len(cuts) + 1} modules"
            raise ConfigError("local.modules", count, problem, "give only one of the two")
        return cut_at(names, cuts, "local.cuts")
    if count is None:
        return None
    if not 1 <= count <= len(names):
        problem = f"must be a whole number from 1 to {len(names)}, the number of units"
        raise ConfigError("local.modules", count, problem)
    return _even(len(names), count)


def _named_cuts(name: str, partitions: Mapping[str, Sequence[str]]) -> list[str]:
    if name not in partitions:
        names = f"the names are {', '.join(partitions)}" if partitions else "this model has none"
        remedy = f"{names}; or give a list of names of units"
        raise ConfigError("local.cuts", name, "is not a partition of the model", remedy)
    return list(partitions[name])


def placed(schedule: Schedule, stages: int) -> list[int]:
    """Return which stage computes each group of consecutive units.

    For example, [0, 1, 0, 1] means four groups: stage 0 computes the first group and the third.
    Under local learning, each stage has one group. Otherwise `schedule.layout` decides.

    Raises:
        ConfigError: The schedule leaves a stage without units, or the first group is not on stage
            0, which loads the batches.
    """
    if schedule.local:
        return [*range(stages)]
    key, name = as_typed("schedule", type(schedule))
    with blaming(key, name, f"its layout({stages})"):
        found: list[Any] = list(islice(schedule.layout(stages), MOST_CHUNKS + 1))
    if len(found) > MOST_CHUNKS:
        problem = f"its layout({stages}) has more than {MOST_CHUNKS} chunks; it may never end"
        raise ConfigError(key, name, problem)
    if not all(map(whole, found)) or found[:1] != [0] or set(found) != {*range(stages)}:
        remedy = f"it must give each of the stages 0 to {stages - 1} a chunk, and stage 0 the first"
        raise ConfigError(key, name, f"its layout({stages}) is {found}", remedy)
    return [*map(int, found)]


def _manual(
    settings: Settings, names: Sequence[str], atoms: Sequence[range], stages: int
) -> list[range]:
    cuts = settings.partition.cuts
    assert cuts is not None
    what = "stages" if stages == settings.stages_asked else "chunks"
    if len(cuts) != stages - 1:
        made = len(cuts) + 1
        remedy = f"give {stages - 1} cuts"
        remedy += f", or gpus={made * settings.replicas}" if what == "stages" else ""
        problem = f"makes {made} {what}, but there are {stages}"
        raise ConfigError("partition.cuts", f"[{','.join(cuts)}]", problem, remedy)
    starts = {atom.start for atom in atoms}
    for cut in cuts:
        if cut in names and names.index(cut) not in starts:
            possible = ", ".join(names[start] for start in sorted(starts) if start)
            problem = f"{cut!r} is inside a module"
            remedy = f"cut at {possible}"
            raise ConfigError("partition.cuts", f"[{','.join(cuts)}]", problem, remedy)
    return cut_at(names, cuts, "partition.cuts")


def grouped(
    weights: Weights, atoms: Sequence[range], modules: Sequence[range] | None, stages: int
) -> list[range]:
    """Join consecutive atoms (single units or fixed modules) into groups of similar cost.

    Args:
        weights: The costs of units, auxiliary networks and copies.
        atoms: Unit indices of each atom.
        modules: Unit indices of each module, if the atoms are modules; otherwise None.
        stages: Number of groups.

    Returns:
        The unit indices of each group.
    """
    costs = [sum(weights.units[index] for index in atom) for atom in atoms]
    if modules and weights.auxiliary:
        costs = [cost + weights.auxiliary(modules, m) for m, cost in enumerate(costs)]
    copies = [0.0, *map(weights.copy, (atom.start for atom in atoms[1:]))] if weights.copy else []
    even = len(set(costs)) == 1 and not copies
    # For deep models, `balance` would be slow.
    parts = _even(len(atoms), stages) if even else balance(costs, stages, copies)
    return [range(atoms[part.start].start, atoms[part.stop - 1].stop) for part in parts]


def _stages_as_modules(weights: Weights, auxiliary: Auxiliary, stages: int) -> list[range]:
    count = len(weights.units)

    @cache
    def at_end(module: int, stop: int) -> float:
        # The cost may depend a little on the other modules. Their sizes are assumed to be equal.
        modules_left, units_left = stages - module - 1, count - stop
        if units_left < modules_left or (units_left and not modules_left):
            return float("inf")  # no partition can end the module before unit `stop`
        early = _even(stop, module + 1)
        late = _even(units_left, modules_left) if modules_left else []
        return auxiliary([*early, *(range(stop + r.start, stop + r.stop) for r in late)], module)

    def cost(module: int, start: int, stop: int) -> float:
        sent = weights.copy(stop) if weights.copy and stop < count else 0.0
        return sum(weights.units[start:stop]) + at_end(module, stop) + sent

    return solve(cost, count, stages)


def _even(items: int, groups: int) -> list[range]:
    size, longer = divmod(items, groups)
    starts = [group * size + min(group, longer) for group in range(groups + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]
