"""Loads the data set of a run, and checks what the data set returns."""

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any

from ppll_cli.config.options import as_typed
from ppll_cli.config.targets import blaming, make, require
from ppll_cli.data.batches import split_data
from ppll_cli.data.dataset import ImageDataset
from ppll_cli.data.identity import Identity
from ppll_cli.data.source import Dataset, EvaluationForm
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.metric_lines import LINE_KEYS
from ppll_cli.leaves.names import class_path, counted
from ppll_cli.leaves.values import InputSpec, ValueSpec
from ppll_cli.models.unit import ImageSpec
from ppll_cli.tasks.task import Task

DATA_SET = ("prepare", "load", "image_spec", "evaluation_form", "batches", "drop_last", "task")

SPLITS = {"train", "test", "val"}
"""The splits of a data set; only `val` may be missing."""


@dataclass(frozen=True)
class LoadedData:
    """A data set that has been loaded.

    Attributes:
        input_spec: Describes the tensors of training batches that the model reads.
        form: Shapes of evaluation batches; None if training batches have the same shapes.
    """

    dataset: Dataset
    splits: Mapping[str, Sized]
    input_spec: InputSpec
    task: Task
    form: EvaluationForm | None

    @property
    def identity(self) -> Identity | None:
        """Entries that identify the data (`data/identity.py`); None if unknown."""
        identify = getattr(self.dataset, "identity", None)
        if not callable(identify):
            return None
        with blaming("data._target_", type(self.dataset).__qualname__, "identity()"):
            found: Identity | None = identify(self.splits)
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels; empty if unknown."""
        return tuple(map(str, getattr(self.dataset, "class_names", ())))


def load_data(config: Mapping[str, Any]) -> LoadedData:
    """Make a data set, prepare its files, load them, and check what the data set returns.

    `config` has the dotted path of the class, as `_target_`, and the class's options.

    Raises:
        ConfigError: The class is no data set, or the data set's files cannot be used, or the data
            set returns something wrong.
    """
    key, path = as_typed("data", config.get("_target_"))
    dataset: Dataset = make("data", config)
    require(key, path, dataset, DATA_SET, f"derive it from {class_path(ImageDataset)}")
    with blaming(key, path, "loading the data"):
        dataset.prepare()
        splits = split_data(dataset)
        image, task = dataset.image_spec(splits), dataset.task
        loaded = LoadedData(dataset, splits, image, task, dataset.evaluation_form(splits))
        if fault := _fault_of(loaded):
            raise ConfigError(key, path, *fault)
    return loaded


def _fault_of(data: LoadedData) -> tuple[str, str] | None:
    splits: object = data.splits
    found = ", ".join(map(str, splits)) if isinstance(splits, Mapping) else type(splits).__name__
    if not isinstance(splits, Mapping) or not {"train", "test"} <= splits.keys() <= SPLITS:
        remedy = "it must return a mapping with train, test and perhaps val"
        return f"its load() returned {found or 'nothing'}", remedy
    if empty := [name for name, split in splits.items() if not len(split)]:
        return f"its split {empty[0]!r} is empty", "each split needs at least one sample"
    if problem := _fault_of_specs(data.task.targets, "targets"):
        remedy = f"give a mapping from the name of each tensor to its {class_path(ValueSpec)}"
        return f"its task has {problem}", remedy
    described = [("image_spec", data.input_spec, data.task.targets)]
    if data.form is not None:
        described.append(("evaluation_form", data.form.image, data.form.targets))
    for method, input_spec, targets in described:
        if problem := _fault_of_inputs(input_spec, targets):
            remedy = f"it must be {class_path(ImageSpec)}, or an object with `specs`: each "
            return (
                f"its {method}() describes inputs by {problem}",
                remedy + f"tensor's name and its {class_path(ValueSpec)}",
            )
    if not isinstance(getattr(data.task, "lower_is_better", False), bool):
        return "its task's lower_is_better is not a bool", "give True or False"
    metric = getattr(data.task, "metric", None)
    if not isinstance(metric, str) or metric in {"", *LINE_KEYS}:
        taken = ", ".join(sorted(LINE_KEYS))
        return f"its task's metric is {metric!r}", f"give a text that is none of {taken}"
    names, classes = len(data.classes), getattr(data.task, "classes", None)
    if names and isinstance(classes, int) and names != classes:
        problem = f"its class_names has {counted(names, 'name')}"
        return f"{problem}, but its task has {classes} classes", "give each class a name"
    return None


def _fault_of_inputs(input_spec: InputSpec, targets: Mapping[str, ValueSpec]) -> str:
    if getattr_static(input_spec, "specs", None) is None:
        return type(input_spec).__name__
    specs: object = input_spec.specs
    if not specs:
        return f"{specs!r} as `specs`"
    if problem := _fault_of_specs(specs, "specs"):
        return problem
    for name, spec in input_spec.specs.items():
        if targets.get(name, spec) != spec:
            return f"{name!r} with another shape or dtype than that of the target"
    return ""


def _fault_of_specs(specs: object, called: str) -> str:
    if not isinstance(specs, Mapping):
        return f"{specs!r} as `{called}`"
    for name, spec in specs.items():
        if not isinstance(name, str) or not isinstance(spec, ValueSpec):
            return f"{name!r} with {type(spec).__name__} in `{called}`"
    return ""
