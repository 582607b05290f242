"""Finds what each module runs after its last unit: its exports and its loss."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

import torch
from torch import Tensor, nn

from ppll_cli.config.options import as_typed
from ppll_cli.config.targets import blaming, checked
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec, empty
from ppll_cli.local.method import (
    Criterion,
    Lag,
    LocalMethod,
    Site,
    module_criterion,
    module_exports,
)
from ppll_cli.models.counters import counters
from ppll_cli.models.trace import Cost, TracedUnit, explained, measure, problem_of, trace
from ppll_cli.models.unit import Unit
from ppll_cli.pipeline.routes import Access, Watch
from ppll_cli.pipeline.validation import whole

MAY_BE_READ = "but later modules may read it: make a new tensor"
"""The last words of error messages about a tensor that is changed in place."""


@dataclass(frozen=True)
class ModuleEnd:
    """What a module runs after its last unit: exports for later modules, then its own loss."""

    follows: tuple[Access, ...]  # the exports, then the loss
    cost: Cost  # cost of the module's auxiliary network
    watches: Watch | None = None  # the unit of a later module whose weights the loss reads


@dataclass(frozen=True)
class Ends:
    """Finds what each module runs after its last unit. It builds networks on the meta device.

    The argument `modules` of its methods has, for each module, the range of its units' indices.
    """

    method: LocalMethod
    site: Site  # describes the model; its field `modules` is not used
    traced: Sequence[TracedUnit]  # outputs and cost of each unit
    batch: Mapping[str, ValueSpec]  # shape and dtype of each tensor of a batch

    def all(self, modules: Sequence[range]) -> tuple[list[ModuleEnd], list[dict[str, ValueSpec]]]:
        """Return what each module runs after its last unit, and the result of `specs`.

        Raises:
            ConfigError: The method does not fit the model, or an export is not allowed, or a loss
                watches a unit that losses cannot watch, or modules share weights of auxiliary
                networks.
        """
        before: list[dict[str, ValueSpec]] = []
        found: list[ModuleEnd] = []
        owners: dict[int, int] = {}
        for here, exports, inside, specs in self._walk(modules):
            before += inside
            self._check_batch_sizes(exports, specs)
            criterion, cost = self._measured(here, specs)
            self._check_weights(criterion, here.module, owners)
            if criterion.watches is not None:
                _check_watch(criterion.watches, here, self._method)
            found.append(ModuleEnd((*exports, criterion), cost, criterion.watches))
        return found, before

    def specs(self, modules: Sequence[range]) -> list[dict[str, ValueSpec]]:
        """Return, for each unit, shapes and dtypes of the tensors that exist before it runs.

        The outputs of exports are included; the property `before` leaves them out.
        """
        return [each for _, _, inside, _ in self._walk(modules) for each in inside]

    def cost(self, modules: Sequence[range], module: int) -> Cost:
        """Return the cost of the auxiliary network of one module."""
        return self._measured(*self._end_of(modules, module))[1]

    def _measured(self, here: Site, specs: Mapping[str, ValueSpec]) -> tuple[Criterion, Cost]:
        build = partial(module_criterion, self.method, here)
        key, value = self._method
        doing = f"the auxiliary network of module {here.module}"
        if here.is_last:  # This head is made by the model, not by the local method.
            key, value = "model", here.units[-1].name
            doing = f"the task's loss of its output {specs[here.feature].shape}"
        with blaming(key, value, doing):
            criterion, cost = measure(build, partial(_run_criterion, specs))
            if not isinstance(criterion, Criterion):
                found = type(criterion).__name__
                problem = f"its criterion() must return a Criterion, not {found}"
                raise ConfigError(key, value, problem)
            _check_further(criterion, specs)
        return criterion, cost

    def _check_batch_sizes(self, exports: Sequence[Unit], specs: Mapping[str, ValueSpec]) -> None:
        for unit in exports:
            with blaming(*self._method, f"running samples through its export {unit.name!r}"):
                problem = problem_of(unit, specs, [specs[name] for name in unit.writes])
            if problem:
                raise ConfigError(*self._method, f"its export {unit.name!r} {problem}")

    def _check_weights(self, criterion: Criterion, module: int, owners: dict[int, int]) -> None:
        for name, parameter in criterion.named_parameters():
            if (owner := owners.setdefault(id(parameter), module)) != module:
                problem = f"its criterion() returns the same {name!r} for modules {owner} and "
                problem += f"{module}, but auxiliary networks cannot share weights"
                raise ConfigError(*self._method, problem, "make new networks in each call")

    @property
    def _method(self) -> tuple[str, object]:
        return as_typed("local", type(self.method))  # key and value for error messages

    def _end_of(self, modules: Sequence[range], module: int) -> tuple[Site, dict[str, ValueSpec]]:
        here, _, _, specs = next(islice(self._walk(modules), module, None))
        return here, specs

    def criterion(
        self, modules: Sequence[range], module: int
    ) -> tuple[Callable[[], Criterion], dict[str, ValueSpec]]:
        """Return a function that builds a module's criterion.

        Also return shape and dtype of each tensor that the criterion may read.
        """
        here, specs = self._end_of(modules, module)
        return partial(module_criterion, self.method, here), specs

    @cached_property
    def before(self) -> list[dict[str, ValueSpec]]:
        """For each unit, shapes and dtypes of the tensors that exist before it runs.

        The outputs of exports are left out.
        """
        found, specs = [], dict(self.batch)
        for unit, made in zip(self.site.units, self.traced, strict=True):
            found.append(dict(specs))
            specs.update(zip(unit.writes, made.outputs, strict=True))
        return found

    @property
    def task_counters(self) -> tuple[str, ...]:
        """Names of the task's Python attributes that change whenever a loss is computed."""
        # Only this copy changes here: the run must begin with the task as it was made.
        task = copy.deepcopy(self.site.task)
        ends = replace(self, site=replace(self.site, task=task))

        def compute() -> None:
            with suppress(ConfigError):  # `all` raises this error for the modules of the run
                ends.cost([range(len(self.site.units))], 0)

        return counters(task, compute)

    def _walk(
        self, modules: Sequence[range]
    ) -> Iterator[tuple[Site, Sequence[Unit], list[dict[str, ValueSpec]], dict[str, ValueSpec]]]:
        units, specs = self.site.units, dict(self.batch)
        names = [unit.name for unit in units]
        for module, indices in enumerate(modules):
            here = replace(self.site, module=module, modules=tuple(modules))
            inside = []
            for index in indices:
                inside.append(dict(specs))
                specs.update(zip(units[index].writes, self.traced[index].outputs, strict=True))
            with blaming(*self._method, f"making the exports of module {module}"):
                exports = module_exports(self.method, here)
                _check_units(exports, specs, self._method)
                made_of = trace(exports, specs)
            for unit, made in zip(exports, made_of, strict=True):
                _check_export(unit, made, [*specs, *names], self._method)
                names.append(unit.name)
                specs.update(zip(unit.writes, made.outputs, strict=True))
            # `inside`: the tensors before each unit; `specs`: the tensors after the exports.
            yield here, exports, inside, dict(specs)


def _check_units(
    exports: object, specs: Mapping[str, ValueSpec], method: tuple[str, object]
) -> None:
    if not isinstance(exports, Sequence) or not all(isinstance(each, Unit) for each in exports):
        raise ConfigError(*method, "its exports() must return a list of Units")
    known = [*specs]
    for unit in exports:
        if unknown := [name for name in unit.reads if name not in known]:
            problem = f"its export {unit.name!r} reads {unknown[0]!r}, which does not exist there"
            raise ConfigError(*method, problem, f"it can read {', '.join(known)}")
        known += unit.writes


def _check_export(
    unit: Unit, made: TracedUnit, taken: Sequence[str], method: tuple[str, object]
) -> None:
    problem = ""
    if made.cost.params:
        problem = f"its export {unit.name!r} has parameters, but exports are not trained"
    elif made.changed:
        name = unit.reads[made.changed[0]]
        problem = f"its export {unit.name!r} changes its input {name!r} in place, {MAY_BE_READ}"
    elif clash := [name for name in (unit.name, *unit.writes) if name in taken]:
        problem = f"it exports {clash[0]!r}, a name that is taken already: use another"
    if problem:
        raise ConfigError(*method, problem)


def _check_watch(watch: Watch, site: Site, method: tuple[str, object]) -> None:
    module, last = site.module, len(site.units) - 1
    if not isinstance(watch, Watch):
        raise ConfigError(*method, f"module {module} watches {watch!r}, which is not a Watch")
    # A loss may read only weights of later modules, and only with a lag of at least one batch. When
    # a module trains on a batch, later modules have not trained on this batch yet. Earlier modules
    # may even have trained on later batches.
    checked("local.lag", watch.lag, Lag, plain=False)
    if not whole(watch.unit) or watch.unit not in range(len(site.units)):
        problem = f"module {module} watches unit {watch.unit}, which does not exist"
    elif watch.unit < site.stop:
        name = site.units[watch.unit].name
        problem = f"module {module} watches {name!r}, which is in no later module"
    else:
        return
    possible = f"unit {site.stop}" if site.stop == last else f"units {site.stop} to {last}"
    raise ConfigError(*method, problem, f"it can watch {possible}")


def _run_criterion(specs: Mapping[str, ValueSpec], criterion: nn.Module) -> nn.Module:
    if isinstance(criterion, Criterion):
        if unknown := [name for name in criterion.reads if name not in specs]:
            raise TypeError(f"it reads {unknown[0]!r}, but the tensors are {', '.join(specs)}")
        match _called(criterion, criterion.reads, specs):
            case (Tensor(shape=(), dtype=torch.float32 | torch.float64), Tensor()):
                pass
            case returned:
                values = returned if isinstance(returned, tuple) else (returned,)
                found = ", ".join(map(_described, values))
                wanted = "a loss, which is a float32 or float64 scalar, and a prediction"
                raise TypeError(f"it returned {found} instead of {wanted}")
    return criterion


def _check_further(criterion: Criterion, specs: Mapping[str, ValueSpec]) -> None:
    if not criterion.further:
        return
    with torch.no_grad(), explained():
        made = _called(criterion.predict_further, criterion.reads, specs)
    if not isinstance(made, Mapping):
        found, wanted = type(made).__name__, "a mapping from names to predictions"
    elif {*made} != {*criterion.further}:
        found, wanted = ", ".join(map(str, made)) or "nothing", ", ".join(criterion.further)
    else:
        return
    raise TypeError(f"its predict_further() returned {found} instead of {wanted}")


def _called(
    function: Callable[[Mapping[str, Tensor]], object],
    reads: Sequence[str],
    specs: Mapping[str, ValueSpec],
) -> object:
    sample = {name: empty(specs[name]) for name in reads}
    result = function(sample)
    if changed := [name for name, tensor in sample.items() if tensor._version]:
        raise TypeError(f"it changes its input {changed[0]!r} in place, {MAY_BE_READ}")
    return result


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {value.dtype} {list(value.shape)}"
    return type(value).__name__
