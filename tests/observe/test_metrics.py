"""From reports of sums to lines of the metrics file."""

import json
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.observe.metrics import Metrics, finite
from ppll_cli.tasks.classification import Classification

MODULES = 3


def report(module: int, split: str, **changes: object) -> dict[str, Any]:
    """Ten samples with a mean loss of 2, four of them correct, in half a second."""
    return {
        "kind": "metrics",
        "stage": 1,
        "module": module,
        "split": split,
        "step": 40,
        "epoch": 4,
        "loss": 20.0,
        "samples": 10,
        "measures": [4.0, 10.0],
        "seconds": 0.5,
        **changes,
    }


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    with Metrics(tmp_path / "metrics.jsonl", Classification(3), MODULES) as metrics:
        yield metrics


def written(metrics: Metrics) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.path.read_text().splitlines()]


def test_a_line(metrics: Metrics) -> None:
    line = metrics.add(report(1, "train"))
    assert line == {
        "step": 40,
        "epoch": 4,
        "split": "train",
        "module": 1,
        "stage": 1,
        "loss": 2.0,
        "accuracy": 0.4,
        "samples_per_second": 20.0,
    }
    assert written(metrics) == [line]  # at once, not when the file is closed


def test_the_last_modules_lines_are_the_models_own(metrics: Metrics) -> None:
    modules = [metrics.add(report(module, "test"))["module"] for module in range(MODULES)]
    assert modules == [0, 1, None]


def test_lines_are_appended(tmp_path: Path) -> None:
    for step in (1, 2):
        with Metrics(tmp_path / "m", Classification(3), MODULES) as metrics:
            metrics.add(report(0, "train", step=step))
    assert [line["step"] for line in written(metrics)] == [1, 2]


@pytest.mark.parametrize("loss", [nan, inf, -inf])
def test_a_loss_that_is_no_number_is_null(metrics: Metrics, loss: float) -> None:
    metrics.add(report(2, "train", loss=loss))
    assert written(metrics)[0]["loss"] is None
    assert metrics.train_loss is None
    assert finite(loss) is None
    assert finite(-0.5) == -0.5


def test_no_time_at_all(metrics: Metrics) -> None:
    assert metrics.add(report(0, "test", seconds=0.0))["samples_per_second"] > 0


def test_train_loss_is_the_models_mean_over_the_last_epoch(metrics: Metrics) -> None:
    assert metrics.train_loss is None
    metrics.add(report(2, "train", epoch=1, loss=50.0))
    assert metrics.train_loss == 5.0
    metrics.add(report(2, "train", epoch=2, loss=20.0))
    metrics.add(report(2, "train", epoch=2, loss=1.0, samples=2))  # weighted by samples
    for other in (report(1, "train", epoch=2), report(2, "test", epoch=2)):
        metrics.add({**other, "loss": 1e9})
    assert metrics.train_loss == 21.0 / 12


def test_result_is_of_the_latest_evaluation(metrics: Metrics) -> None:
    metrics.add(report(2, "test", loss=90.0))
    metrics.add(report(2, "test", loss=30.0))
    metrics.add(report(2, "val", loss=10.0))
    metrics.add(report(0, "test", loss=70.0))
    assert metrics.result("test") == {"loss": 3.0, "accuracy": 0.4}
    assert metrics.result("val") == {"loss": 1.0, "accuracy": 0.4}
    assert metrics.result("test", module=0) == {"loss": 7.0, "accuracy": 0.4}
    assert metrics.result("test", module=2) == metrics.result("test")
    assert metrics.result("test", module=1) is None
    assert metrics.result("train") is None


def test_last_step_is_the_latest_of_any_line(metrics: Metrics) -> None:
    assert metrics.last_step == 0
    for step in (10, 50, 40):  # a late stage reports after an early one is ahead
        metrics.add(report(0, "train", step=step))
    assert metrics.last_step == 50
