"""The objective that a run returns to a sweeper."""

from contextlib import nullcontext
from typing import Any

import pytest

from ppll_cli.config.objective import check_direction, chosen, value
from ppll_cli.errors import ConfigError

SUMMARY: dict[str, Any] = {
    "status": "completed",
    "emulated": False,
    "steps": 40,
    "train": {"samples_per_second": 1234.5, "loss": None},
    "test": {"loss": 0.25, "accuracy": 0.875},
    "stages": [{"peak_memory_bytes": 1000}, {"peak_memory_bytes": None}],
}
BEFORE = {**SUMMARY, "test": None}


def test_the_default_objective_is_the_val_metric_or_the_test_metric() -> None:
    assert chosen(None, BEFORE, "accuracy") == "test.accuracy"
    assert chosen(None, {**BEFORE, "val": None}, "accuracy") == "val.accuracy"


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("test.accuracy", 0.875),
        ("test.loss", 0.25),
        ("steps", 40.0),
        ("train.samples_per_second", 1234.5),
        ("train.loss", None),
        ("stages.0.peak_memory_bytes", 1000.0),
        ("stages.1.peak_memory_bytes", None),
    ],
)
def test_any_number_of_the_summary_can_be_the_objective(key: str, number: float | None) -> None:
    assert chosen(key, BEFORE, "accuracy") == key
    assert value(key, SUMMARY) == number


def test_a_run_that_was_not_evaluated_has_no_metric() -> None:
    assert value("test.accuracy", BEFORE) is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("accuracy", "objective=accuracy: summary.json has no 'accuracy'; there are status, "),
        ("test.psnr", "objective=test.psnr: test has no 'psnr'; there are loss, accuracy"),
        ("val.accuracy", "objective=val.accuracy: summary.json has no 'val'; there are status, "),
        ("steps.x", "objective=steps.x: steps has no 'x'; it is not a group of keys"),
        ("stages.2.x", "objective=stages.2.x: stages has no '2'; there are 0, 1"),
        ("stages", "objective=stages: is not a number in summary.json"),
        ("emulated", "objective=emulated: is not a number in summary.json"),
        ("status", "objective=status: is not a number in summary.json"),
        ("test", "objective=test: is not a number; give test.loss or test.accuracy"),
    ],
)
def test_keys_that_have_no_number_are_refused(key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(key, BEFORE, "accuracy")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("key", "direction", "metric", "lower", "remedy"),
    [
        ("val.accuracy", "minimize", "accuracy", False, "maximize"),
        ("test_ema.perplexity", "maximize", "perplexity", True, "minimize"),
        ("per_module.0.test.loss", "maximize", "accuracy", False, "minimize"),
        ("val.accuracy", "maximize", "accuracy", False, None),
        ("val.perplexity", "minimize", "perplexity", True, None),
        ("val.accuracy", None, "accuracy", False, None),
        ("train.seconds", "maximize", "accuracy", False, None),
    ],
)
def test_a_search_for_the_worst_result_is_refused(
    key: str, direction: str | None, metric: str, lower: bool, remedy: str | None
) -> None:
    """Optuna minimizes unless told otherwise, so it searched for the worst accuracy."""
    expected: Any = nullcontext() if remedy is None else pytest.raises(ConfigError)
    with expected as caught:
        check_direction(key, direction, metric, lower)
    if caught is not None:
        assert str(caught.value).startswith(f"hydra.sweeper.direction={direction}: with the objec")
        assert str(caught.value).endswith(f"; give hydra.sweeper.direction={remedy}")
