"""What is known of data set and model before a run: splits, images, and the units' shapes."""

from collections.abc import Sequence
from typing import Any

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.models.trace import trace
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.prepare import subject
from ppll_cli.tasks.classification import Classification
from tests.conftest import own_model, prepared

DATA = ["data=synthetic", "data.size=8", "data.train_samples=8", "data.test_samples=4"]
DATA += ["batch_size=4", "schedule=bp", "gpus=1"]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the units that are traced from now on."""
    names: list[str] = []

    def spy(units: Sequence[Unit], batch: Any) -> Any:
        names.extend(unit.name for unit in units)
        return trace(units, batch)

    monkeypatch.setattr(subject, "_TRACED", {})
    monkeypatch.setattr(subject, "trace", spy)
    return names


def test_units_of_the_programs_models_are_traced_once(traced: list[str]) -> None:
    case = [*DATA, "model.dim=16", "model.heads=2"]
    first = prepared(*case, "model.depth=2")
    assert traced == ["embed", "blocks.0", "head"]
    again = prepared(*case, "model.depth=3")
    assert traced == ["embed", "blocks.0", "head"]
    assert again.unit_costs[:2] == first.unit_costs[:2]
    assert again.unit_costs[-1] == first.unit_costs[-1]
    other = prepared(*DATA, "model.dim=24", "model.heads=2", "model.depth=2")
    assert traced == ["embed", "blocks.0", "head"] * 2
    assert other.unit_costs[1].params > first.unit_costs[1].params


def test_units_of_a_user_are_traced_each_time(traced: list[str]) -> None:
    """The code of a user's units may have changed, although the units' arguments are the same."""
    case = [*DATA, *own_model("Skipping")]
    prepared(*case)
    names = [*traced]
    assert names
    prepared(*case)
    assert traced == names * 2


class Loaded:
    """A data set whose splits, image or names of classes are given."""

    drop_last, task = False, Classification(2)

    def __init__(self, *, splits: Any, image: list[int], names: list[str]) -> None:
        self.splits, self.class_names = splits, names
        self.image: Any = tuple(image)
        if len(image) == 3:
            self.image = ImageSpec(*self.image)

    def prepare(self) -> None:
        """Do nothing: there are no files."""

    def load(self) -> Any:
        return self.splits

    def image_spec(self, splits: Any) -> Any:
        return self.image

    def evaluation_form(self, splits: Any) -> None:
        """Return None: evaluation batches have the form of training batches."""

    def batches(self, *_: Any) -> None:
        """Nothing is trained here."""


GOOD = {"splits": {"train": [1], "test": [1]}, "image": [1, 8, 8], "names": ["a", "b"]}


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
            {"image": [1, 8]},
            "its image_spec() returned tuple; it must return ppll_cli.leaves",
        ),
        ({"names": ["a"]}, "its class_names are 1, but its task has 2 classes; give each class"),
    ],
)
def test_a_data_set_that_loads_something_else_is_refused(fault: Any, problem: str) -> None:
    """Without a test set, a run was trained and never evaluated; a list of splits ended it late."""
    path = f"{__name__}.Loaded"
    subject.load_data({"_target_": path, **GOOD})
    with pytest.raises(ConfigError) as caught:
        subject.load_data({"_target_": path, **GOOD, **fault})
    assert str(caught.value).startswith(f"data._target_={path}: {problem}")
