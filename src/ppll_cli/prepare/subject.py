"""The subject of a run, independent of the schedule: data set, model and local method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from types import NoneType
from typing import Any

import torch
from torch import nn

from ppll_cli.config.options import as_typed
from ppll_cli.config.settings import Settings
from ppll_cli.config.targets import blaming, require
from ppll_cli.data.identity import Identity
from ppll_cli.errors import ConfigError
from ppll_cli.job.ends import Ends, ModuleEnd
from ppll_cli.job.job import WatchedUnit
from ppll_cli.leaves.names import class_path
from ppll_cli.leaves.values import InputSpec, ValueSpec
from ppll_cli.local.fba import bank_for
from ppll_cli.local.method import LocalMethod, Site
from ppll_cli.models.trace import Cost, TracedUnit, problem_of, trace
from ppll_cli.models.unit import Model, Unit, check_names, make_seeded, seeded_model
from ppll_cli.pipeline.layout import Layout
from ppll_cli.prepare.loading import load_data
from ppll_cli.tasks.classification import with_mixing, with_smoothing
from ppll_cli.tasks.task import Task

Found = tuple[list[ModuleEnd], list[dict[str, ValueSpec]]]
"""What each module runs after its last unit; and for each unit, the shape and dtype of each tensor
that exists before the unit runs."""


MOST_UNITS = 10_000
"""Largest accepted number of units. It stops a user's generator that never ends."""


@dataclass(frozen=True)
class Evaluation:
    """Evaluation batches of at most `samples` samples, with other shapes than training batches."""

    samples: int
    ends: Ends


@dataclass(frozen=True)
class Subject:
    """The data set, model and local method of a run.

    Attributes:
        samples: Number of samples of each split.
        drop_last: Whether a shorter last batch of an epoch is left out.
        local: Configuration of the local method's class.
        ends: Has the model's units, and finds the exports and the loss of each module.
        identity: For example, names and sizes of files, by which a resumed run recognises the data
            (`data/identity.py`); None if unknown.
        evaluation: Describes evaluation batches; None if they have the shapes of training batches.
        classes: Names of the classes in the order of their labels; empty if unknown.
    """

    samples: Mapping[str, int]
    drop_last: bool
    model: Model
    local: Mapping[str, Any]
    ends: Ends
    identity: Identity | None = None
    evaluation: "Evaluation | None" = None
    classes: tuple[str, ...] = ()
    _found: dict[tuple[range, ...], Found] = field(default_factory=dict, repr=False)

    @property
    def input_spec(self) -> InputSpec:
        """The tensors of a batch that the model reads."""
        return self.ends.site.input_spec

    @property
    def task(self) -> Task:
        """The task that the model learns."""
        return self.ends.site.task

    @property
    def units(self) -> Sequence[Unit]:
        """The model's units."""
        return self.ends.site.units

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the units."""
        return tuple(unit.name for unit in self.units)

    @cached_property
    def costs(self) -> tuple[Cost, ...]:
        """Cost of each unit."""
        return tuple(unit.cost for unit in self.ends.traced)

    @property
    def partitions(self) -> Mapping[str, Sequence[str]]:
        """The model's own partitions, by name.

        A partition lists the names of the first units of modules 1, 2, ...
        """
        named: Mapping[str, Sequence[str]] = getattr(self.model, "partitions", {})
        return named

    def at_ends(self, modules: tuple[range, ...]) -> Found:
        """Return each module's exports and loss, and the tensors that each unit may read.

        Raises:
            ConfigError: The local method does not fit the model, or an export is not allowed, or a
                loss watches a unit that it may not watch.
        """
        if modules not in self._found:
            self._found[modules] = self.ends.all(modules)
        return self._found[modules]

    def auxiliary_costs(self, modules: tuple[range, ...]) -> tuple[Cost, ...]:
        """Return the cost of each module's auxiliary network."""
        return tuple(end.cost for end in self.at_ends(modules)[0])

    def stage_costs(self, layout: Layout, stage: int) -> list[Cost]:
        """Return the costs of a stage's units, and of the auxiliary networks of its modules."""
        auxiliary = self.auxiliary_costs(layout.modules)
        units = [self.costs[unit] for unit in layout.units(stage)]
        return units + [auxiliary[module] for module in layout.modules_of(stage)]

    def watched(self, index: int) -> WatchedUnit:
        """Describe a unit whose weights are read ("watched") by the loss of an earlier module."""
        unit = self.units[index]
        with torch.device("meta"):
            parameters = dict(unit.build().named_parameters())
        specs = {name: ValueSpec(tuple(p.shape), p.dtype) for name, p in parameters.items()}
        return WatchedUnit(unit.name, specs)


def make_units(
    config: Mapping[str, Any], input_spec: InputSpec, task: Task, seed: int
) -> tuple[Model, tuple[Unit, ...]]:
    """Make a model and its units. Random numbers in the model's code depend only on the seed.

    Raises:
        ConfigError: The class is no model, or the model does not fit the data or the task.
    """
    key, path = as_typed("model", config.get("_target_"))
    with seeded_model(config, seed) as model:
        require(key, path, model, ("units",), f"see {class_path(Model)}")
        with blaming(key, path, "units()"):
            units = tuple(islice(model.units(input_spec, task), MOST_UNITS + 1))
    if len(units) > MOST_UNITS:
        problem = f"its units() returns more than {MOST_UNITS} units; it may never end"
        raise ConfigError(key, path, problem, "put several layers into one unit")
    _check_units(units, input_spec, task, (key, path))
    return model, units


def examine(settings: Settings) -> Subject:
    """Load the data set, make the model and local method, and trace a sample through the model.

    Raises:
        ConfigError: The settings do not fit the data, the model or one another.
    """
    loaded = load_data(settings.data)
    input_spec, form = loaded.input_spec, loaded.form
    mixed = getattr(loaded.dataset, "mixed", {})
    _check_mixing(mixed, settings.batch_size)
    task = with_mixing(loaded.task, mixed)
    task = with_smoothing(task, settings.optim.label_smoothing)
    model, units = make_units(settings.model, input_spec, task, settings.seed)
    key, path = as_typed("model", settings.model.get("_target_"))

    local = {k: v for k, v in settings.local.items() if k not in ("modules", "cuts")}
    # A user's class (`local._target_`) may lack this argument, so null is not passed.
    if local.get("detection_head") is None:
        local.pop("detection_head", None)
    if settings.fba.enabled and "bank" in local:  # fill in the bank's defaults, to record them
        local["bank"] = bank_for(settings.fba, task, units).model_dump()
    method = make_seeded("local", local, settings.seed)
    if not isinstance(method, LocalMethod):
        remedy = f"derive it from {class_path(LocalMethod)}"
        raise ConfigError("local._target_", local["_target_"], "is not a LocalMethod", remedy)

    def ends(input_spec: InputSpec, targets: Mapping[str, ValueSpec]) -> Ends:
        batch = {**input_spec.specs, **targets}
        traced = _traced(units, batch, (key, path))
        features = tuple(unit.outputs[0] for unit in traced)
        return Ends(method, Site(0, (), units, features, input_spec, task), traced, batch)

    return Subject(
        samples={name: len(split) for name, split in loaded.splits.items()},
        drop_last=loaded.dataset.drop_last,
        model=model,
        local=local,
        ends=ends(input_spec, task.targets),
        identity=loaded.identity,
        classes=loaded.classes,
        evaluation=Evaluation(form.samples, ends(form.image, form.targets)) if form else None,
    )


def _check_mixing(mixed: Mapping[str, float], batch_size: int) -> None:
    if mixed and batch_size == 1:
        key, value = next(iter(mixed.items()))
        problem = "mixes the images of a batch, but batch_size=1 leaves no second image"
        raise ConfigError(key, value, problem, f"give batch_size=2 or more, or {key}=0")


def _traced(
    units: Sequence[Unit], batch: Mapping[str, ValueSpec], model: tuple[str, object]
) -> list[TracedUnit]:
    known: dict[object, TracedUnit] = {}
    specs = dict(batch)
    traced = []
    for unit in units:
        recipe = recipe_of(unit, specs)
        found = _TRACED if is_own(unit) else known
        if recipe not in found:
            with blaming(*model, f"running a sample through {unit.name!r}"):
                (made,) = trace([unit], specs)
                if not is_own(unit) and (problem := problem_of(unit, specs, made.outputs)):
                    raise ConfigError(*model, f"unit {unit.name!r} {problem}")
            found[recipe] = made
        traced.append(found[recipe])
        specs.update(zip(unit.writes, traced[-1].outputs, strict=True))
    return traced


# Traces of the program's own units: the next run of a sweep may need them.
_TRACED: dict[object, TracedUnit] = {}


def is_own(unit: Unit) -> bool:
    """Return whether a unit is the program's own, and so needs fewer tests.

    Such a unit builds a class of `ppll_cli.models`, with only numbers, texts and None as arguments.
    """
    if not isinstance(unit.build, partial) or not isinstance(unit.build.func, type):
        return False
    plain = (bool, int, float, str, NoneType)
    values = (*unit.build.args, *unit.build.keywords.values())
    return unit.build.func.__module__.startswith("ppll_cli.models.") and all(
        isinstance(value, plain) for value in values
    )


def recipe_of(unit: Unit, specs: Mapping[str, ValueSpec]) -> object:
    """Return a value that is equal for two units if it suffices to trace or test one of them.

    Such units call the same function with equal options in `build`, and read tensors of equal
    shapes and dtypes.
    """
    if not isinstance(unit.build, partial):
        return id(unit)
    options = repr((unit.build.args, unit.build.keywords))
    return unit.build.func, options, *(specs[name] for name in unit.reads)


def _check_units(
    units: Sequence[Unit], input_spec: InputSpec, task: Task, model: tuple[str, object]
) -> None:
    if not units or not all(isinstance(u, Unit) and isinstance(u.name, str) for u in units):
        problem = "its units() must return a list of at least one Unit, each with text as its name"
        raise ConfigError(*model, problem)
    check_names([unit.name for unit in units])
    known = {*input_spec.specs}
    for unit in units:
        _check_form(unit, model)
        missing = [name for name in unit.reads if name not in known]
        if missing:
            problem = f"unit {unit.name!r} reads {missing[0]!r}, which no earlier unit writes"
            raise ConfigError(*model, problem, f"it can read {', '.join(sorted(known))}")
        for name in unit.writes:
            if name in input_spec.specs or name in task.targets:
                problem = (
                    f"unit {unit.name!r} writes {name!r}, the name of a tensor of the data set"
                )
                raise ConfigError(*model, problem, "use another name")
        known.update(unit.writes)


def _check_form(unit: Unit, model: tuple[str, object]) -> None:
    if isinstance(unit.build, nn.Module) or not callable(unit.build):
        problem = f"`build` of unit {unit.name!r} is no function that returns a network"
        remedy = "give a function, for example functools.partial(nn.Linear, 16, 16)"
        raise ConfigError(*model, problem, remedy)
    for names in (unit.reads, unit.writes):
        # The order of a set differs between processes.
        ordered = isinstance(names, tuple | list)
        if not ordered or not all(isinstance(name, str) for name in names):
            problem = f"reads and writes of unit {unit.name!r} must be tuples of names"
            raise ConfigError(*model, f"{problem}, not {names!r}", 'for example ("x",)')
    if not unit.writes or len({*unit.writes}) < len(unit.writes):
        problem = f"unit {unit.name!r} writes {unit.writes}: it must write at least one tensor, "
        problem += "and no name twice"
        raise ConfigError(*model, problem, "give each tensor a name of its own")
