"""What is trained, as far as the schedule does not matter: data set, model and local method."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ppll_cli.config.options import as_typed
from ppll_cli.config.settings import Settings
from ppll_cli.config.targets import blaming, make, require
from ppll_cli.data.dataset import ImageDataset
from ppll_cli.data.identity import Identity
from ppll_cli.data.source import Dataset, EvaluationForm
from ppll_cli.errors import ConfigError
from ppll_cli.job.ends import Ends, ModuleEnd
from ppll_cli.job.job import WatchedUnit
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.fba import bank_for
from ppll_cli.local.method import LocalMethod, Site
from ppll_cli.models.trace import Cost, TracedUnit, trace
from ppll_cli.models.unit import IMAGE, ImageSpec, Model, Unit, check_names
from ppll_cli.tasks.classification import with_mixing, with_smoothing
from ppll_cli.tasks.task import Task

DATA_SET = (
    "prepare",
    "load",
    "image_spec",
    "evaluation_form",
    "batches",
    "drop_last",
    "task",
)
"""What is asked of a data set."""

Found = tuple[list[ModuleEnd], list[dict[str, ValueSpec]]]


@dataclass(frozen=True)
class Evaluation:
    """Evaluation batches that are not like training batches.

    Attributes:
        samples: How many samples one has at most.
        ends: As for training batches.
    """

    samples: int
    ends: Ends


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        samples: How many each split of the data set has.
        drop_last: Whether a shorter last batch is left out.
        model: Makes the units.
        method: How modules are trained by local losses.
        local: Configuration of the local method's class.
        ends: The units, and what stands at the ends of modules.
        identity: What identifies the data; None where the data set does not say it.
        evaluation: The same for evaluation batches, where they are not like training batches.
        classes: Names of the classes by their labels, where the data set says them.
    """

    samples: Mapping[str, int]
    drop_last: bool
    model: Model
    method: LocalMethod
    local: Mapping[str, Any]
    ends: Ends
    identity: Identity | None = None
    evaluation: "Evaluation | None" = None
    classes: tuple[str, ...] = ()
    _found: dict[tuple[range, ...], Found] = field(default_factory=dict, repr=False)

    @property
    def image(self) -> ImageSpec:
        """What the model is built for."""
        return self.ends.site.image

    @property
    def task(self) -> Task:
        """What is learnt."""
        return self.ends.site.task

    @property
    def units(self) -> Sequence[Unit]:
        """The model's units."""
        return self.ends.site.units

    @property
    def names(self) -> tuple[str, ...]:
        """Of the units."""
        return tuple(unit.name for unit in self.units)

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Of the units."""
        return tuple(unit.cost for unit in self.ends.traced)

    @property
    def partitions(self) -> Mapping[str, Sequence[str]]:
        """The model's own, by name: the units that start modules 2 to k."""
        named: Mapping[str, Sequence[str]] = getattr(self.model, "partitions", {})
        return named

    def at_ends(self, modules: tuple[range, ...]) -> Found:
        """The end of each module, and for each unit what is there before it.

        Raises:
            ConfigError: The local method does not apply to the model, or exports or watches what it
                may not.
        """
        if modules not in self._found:
            self._found[modules] = self.ends.all(modules)
        return self._found[modules]

    def watched(self, index: int) -> WatchedUnit:
        """What a loss gets that watches a unit."""
        unit = self.units[index]
        with torch.device("meta"):
            parameters = dict(unit.build().named_parameters())
        specs = {name: ValueSpec(tuple(p.shape), p.dtype) for name, p in parameters.items()}
        return WatchedUnit(unit.name, specs)


@dataclass(frozen=True)
class LoadedData:
    """A data set that has been loaded.

    Attributes:
        dataset: The data set.
        splits: What it loaded.
        image: What training images are like.
        task: What is learnt from it.
        form: What evaluation batches are like where they are not like training batches.
    """

    dataset: Dataset
    splits: Mapping[str, Sized]
    image: ImageSpec
    task: Task
    form: EvaluationForm | None

    @property
    def identity(self) -> Identity | None:
        """What identifies the data; None where the data set does not say it."""
        identify = getattr(self.dataset, "identity", None)
        if not callable(identify):
            return None
        with blaming("data._target_", type(self.dataset).__qualname__, "identity()"):
            found: Identity | None = identify(self.splits)
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by their labels; none where the data set does not say them."""
        return tuple(map(str, getattr(self.dataset, "class_names", ())))


def load_data(config: Mapping[str, Any]) -> LoadedData:
    """Make a data set, have its files made ready, and load them.

    Args:
        config: Configuration of its class.

    Raises:
        ConfigError: The class is of no use, or the files are not what they should be.
    """
    key, path = as_typed("data", config.get("_target_"))
    dataset: Dataset = make("data", config)
    require(key, path, dataset, DATA_SET, f"derive it from {ImageDataset.__module__}.ImageDataset")
    with blaming(key, path, "loading the data"):
        dataset.prepare()
        splits = dataset.load()
        image = dataset.image_spec(splits)
        task = dataset.task
        form = dataset.evaluation_form(splits)
    return LoadedData(dataset, splits, image, task, form)


def make_units(
    config: Mapping[str, Any], image: ImageSpec, task: Task
) -> tuple[Model, tuple[Unit, ...]]:
    """A model, and its units for these images and this task.

    Args:
        config: Configuration of the model's class.
        image: What training images are like.
        task: What is learnt.

    Raises:
        ConfigError: The class is of no use, or does not fit the images or the task.
    """
    key, path = as_typed("model", config.get("_target_"))
    model: Model = make("model", config)
    require(key, path, model, ("units",), f"see {Model.__module__}.Model")
    with blaming(key, path, "units()"):
        units = tuple(model.units(image, task))
    _check_units(units, task, (key, path))
    return model, units


def examine(settings: Settings) -> Subject:
    """Load the data set, and follow one sample through the model.

    Raises:
        ConfigError: The settings do not fit the data, the model or one another.
    """
    loaded = load_data(settings.data)
    image, form = loaded.image, loaded.form
    task = with_mixing(loaded.task, getattr(loaded.dataset, "mixed", {}))
    task = with_smoothing(task, settings.optim.label_smoothing)
    model, units = make_units(settings.model, image, task)
    key, path = as_typed("model", settings.model.get("_target_"))

    local = {k: v for k, v in settings.local.items() if k not in ("modules", "cuts")}
    if local.get("detection_head") is None:  # greedy's keys stand there for a user's own class too
        local.pop("detection_head", None)
    if settings.fba.enabled and "bank" in local:  # what it leaves open is settled, and recorded so
        local["bank"] = bank_for(settings.fba, task, units).model_dump()
    method = make("local", local)
    if not isinstance(method, LocalMethod):
        raise ConfigError(
            "local._target_",
            local["_target_"],
            "is no LocalMethod",
            f"derive it from {LocalMethod.__module__}.LocalMethod",
        )

    def ends(image: ImageSpec, targets: Mapping[str, ValueSpec]) -> Ends:
        shape = (image.channels, image.height, image.width)
        batch = {IMAGE: ValueSpec(shape, torch.float32), **targets}
        traced = _traced(units, batch, (key, path))
        features = tuple(unit.outputs[0] for unit in traced)
        return Ends(method, Site(0, (), units, features, image, task), traced, batch)

    return Subject(
        samples={name: len(split) for name, split in loaded.splits.items()},
        drop_last=loaded.dataset.drop_last,
        model=model,
        method=method,
        local=local,
        ends=ends(image, task.targets),
        identity=loaded.identity,
        classes=loaded.classes,
        evaluation=Evaluation(form.samples, ends(form.image, form.targets)) if form else None,
    )


def _traced(
    units: Sequence[Unit], batch: Mapping[str, ValueSpec], model: tuple[str, object]
) -> list[TracedUnit]:
    """As `trace`; what is built alike for inputs that are alike is followed once."""
    known: dict[object, TracedUnit] = {}
    specs = dict(batch)
    traced = []
    for unit in units:
        recipe = recipe_of(unit, specs)
        if recipe not in known:
            with blaming(*model, f"following a sample through {unit.name!r}"):
                (known[recipe],) = trace([unit], specs)
        traced.append(known[recipe])
        specs.update(zip(unit.writes, traced[-1].outputs, strict=True))
    return traced


def recipe_of(unit: Unit, specs: Mapping[str, ValueSpec]) -> object:
    """What is equal for units that are built alike for inputs that are alike.

    Args:
        unit: The unit.
        specs: What the tensors that it may read are like.
    """
    if not isinstance(unit.build, partial):
        return id(unit)
    options = repr((unit.build.args, unit.build.keywords))
    return unit.build.func, options, *(specs[name] for name in unit.reads)


def _check_units(units: Sequence[Unit], task: Task, model: tuple[str, object]) -> None:
    """Check what a user's own model returns."""
    if not units or not all(isinstance(unit, Unit) for unit in units):
        raise ConfigError(*model, "its units() must return a list of at least one Unit")
    check_names([unit.name for unit in units])
    known = {IMAGE}
    for unit in units:
        missing = [name for name in unit.reads if name not in known]
        if missing:
            raise ConfigError(
                *model,
                f"unit {unit.name!r} reads {missing[0]!r}, which nothing before it makes",
                f"there are {', '.join(sorted(known))}",
            )
        for name in unit.writes:
            if name == IMAGE or name in task.targets:
                problem = f"unit {unit.name!r} writes {name!r}, which losses read as it was loaded"
                raise ConfigError(*model, problem, "use another name")
        known.update(unit.writes)
