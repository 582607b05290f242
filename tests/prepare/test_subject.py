"""What is known of data set and model before a run: splits, images, and the units' shapes."""

from collections.abc import Sequence
from typing import Any

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.models.trace import trace
from ppll_cli.models.unit import Unit
from ppll_cli.prepare import subject
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
    assert again.subject.costs[:2] == first.subject.costs[:2]
    assert again.subject.costs[-1] == first.subject.costs[-1]
    other = prepared(*DATA, "model.dim=24", "model.heads=2", "model.depth=2")
    assert traced == ["embed", "blocks.0", "head"] * 2
    assert other.subject.costs[1].params > first.subject.costs[1].params


def test_units_of_a_user_are_traced_each_time(traced: list[str]) -> None:
    """The code of a user's units may have changed, although the units' arguments are the same."""
    case = [*DATA, *own_model("Skipping")]
    prepared(*case)
    names = [*traced]
    assert names
    prepared(*case)
    assert traced == names * 2


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_a_batch_of_one_image_cannot_be_mixed(key: str) -> None:
    """Each image would be mixed with itself."""
    case = [*DATA, "model.dim=16", "model.heads=2", "model.depth=2", f"data.{key}=0.5"]
    prepared(*case)
    with pytest.raises(ConfigError, match=rf"^data\.{key}=0.5: mixes the images of a batch, but"):
        prepared(*case, "batch_size=1")
