"""A data set is checked when it is loaded."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppll_cli.data.source import EvaluationForm
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import ImageSpec
from ppll_cli.prepare.loading import load_data
from ppll_cli.tasks.classification import Classification


class Loaded:
    """A data set whose splits, description of inputs, task or names of classes are given."""

    drop_last = False

    def __init__(self, *, splits: Any, inputs: str, form: str, names: list[str], task: str) -> None:
        self.splits, self.class_names = splits, names
        self.inputs, self.form, self.task = INPUTS[inputs], INPUTS[form], TASKS[task]

    def prepare(self) -> None:
        """Do nothing: there are no files."""

    def load(self) -> Any:
        return self.splits

    def image_spec(self, splits: Any) -> Any:
        return self.inputs

    def evaluation_form(self, splits: Any) -> EvaluationForm:
        return EvaluationForm(self.form, {}, samples=1)

    def batches(self, *_: Any) -> None:
        """Nothing is trained here."""


LABELS = ValueSpec((), torch.int64)
INPUTS: dict[str, Any] = {
    "images": ImageSpec(1, 8, 8),
    "labels": SimpleNamespace(specs={"label": LABELS}),  # a target may be an input, too
    "other labels": SimpleNamespace(specs={"label": ValueSpec((3,), torch.int64)}),
    "shapes": SimpleNamespace(specs={"tokens": (3,)}),
    "nothing": SimpleNamespace(specs={}),
    "tuple": (1, 8, 8),
}
TASKS = {
    "usual": Classification(2),
    "unclear": SimpleNamespace(targets={}, lower_is_better="yes"),
    "loss": SimpleNamespace(targets={}, metric="loss"),
    "no metric": SimpleNamespace(targets={}),
    "names only": SimpleNamespace(targets=["label"]),
    "shapes": SimpleNamespace(targets={"label": (3,)}),
}
GOOD = {
    "splits": {"train": [1], "test": [1]},
    "inputs": "images",
    "form": "images",
    "names": ["a", "b"],
    "task": "usual",
}


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"splits": [[1], [1]]}, "its load() returned list; it must return a mapping with train,"),
        ({"splits": {}}, "its load() returned nothing; it must"),
        ({"splits": {"train": [1]}}, "its load() returned train; it must"),
        (
            {"splits": {"train": [1], "test": [1], "dev": [1]}},
            "its load() returned train, test, dev",
        ),
        ({"splits": {"train": [1], "test": []}}, "its split 'test' is empty; each split needs"),
        (
            {"inputs": "tuple"},
            "its image_spec() describes inputs by tuple; it must be ppll_cli.lea",
        ),
        ({"inputs": "nothing"}, "its image_spec() describes inputs by {} as `specs`; it"),
        (
            {"inputs": "shapes"},
            "its image_spec() describes inputs by 'tokens' with tuple in `specs`",
        ),
        (
            {"inputs": "other labels"},
            "its image_spec() describes inputs by 'label' with another shape or dtype than that of",
        ),
        ({"form": "tuple"}, "its evaluation_form() describes inputs by tuple; it must be"),
        (
            {"task": "names only"},
            "its task has ['label'] as `targets`; give a mapping from the name",
        ),
        ({"task": "shapes"}, "its task has 'label' with tuple in `targets`; give a mapping"),
        ({"task": "unclear"}, "its task's lower_is_better is not a bool; give True or False"),
        ({"task": "loss"}, "its task's metric is 'loss'; give a text that is none of epoch, grad_"),
        ({"task": "no metric"}, "its task's metric is None; give a text"),
        (
            {"names": ["a"]},
            "its class_names has 1 name, but its task has 2 classes; give each class a name",
        ),
    ],
)
def test_a_data_set_that_loads_something_else_is_refused(fault: Any, problem: str) -> None:
    """Without a test set, a run was trained but never evaluated.

    If `load` returned a list of splits, the run failed late. If the metric had a name that
    `metrics.jsonl` uses already, the run failed after its first epoch.
    """
    path = f"{__name__}.Loaded"
    for inputs in ("images", "labels"):
        load_data({"_target_": path, **GOOD, "inputs": inputs})
    with pytest.raises(ConfigError) as caught:
        load_data({"_target_": path, **GOOD, **fault})
    assert str(caught.value).startswith(f"data._target_={path}: {problem}")
