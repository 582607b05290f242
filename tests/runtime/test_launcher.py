"""Workers that fail, and what the parent makes of it."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError, WorkerFailedError
from tests.conftest import Runner, own_model

DATA = ["data=synthetic", "data.size=4", "data.train_samples=64", "data.test_samples=8"]


def faulty(unit: str, act: str) -> list[str]:
    return [*own_model("Faulty", unit=unit, act=act), *DATA, "batch_size=8"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("schedule", ["ppll", "gpipe", "ll"])
@pytest.mark.parametrize(("unit", "stage"), [("first", 0), ("second", 1), ("third", 2)])
def test_a_worker_that_raises_ends_the_run(
    run: Runner, schedule: str, unit: str, stage: int
) -> None:
    """The others would wait for it for ever: the parent must end them."""
    started = time.monotonic()
    with pytest.raises(WorkerFailedError, match="the third pass is too much") as failure:
        run(f"schedule={schedule}", "gpus=3", *faulty(unit, "raise"))
    report = failure.value.report
    assert report["stage"] == (0 if schedule == "ll" else stage)
    assert "Forward" in report["phase"]
    assert "step=" in report["batch"]
    assert report["shapes"]["label"] == [8 if schedule != "gpipe" else 2]
    assert "ArithmeticError" in report["traceback"]
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", ["first", "third"])
def test_a_worker_that_is_killed_ends_the_run(run: Runner, unit: str) -> None:
    with pytest.raises(WorkerFailedError, match=r"the worker process is gone \(killed by SIGKILL"):
        run("schedule=ppll", "gpus=3", *faulty(unit, "kill"))
    assert not multiprocessing.active_children()


def test_a_failed_run_leaves_a_summary_that_says_so(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailedError) as failure:
        run("schedule=ppll", "gpus=2", *faulty("second", "raise"))
    summary = json.loads((tmp_path / "run-0" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"] == str(failure.value)
    assert summary["test"] is None


def test_a_model_that_returns_no_units_is_refused(run: Runner) -> None:
    with pytest.raises(ConfigError, match="must return a list of at least one Unit"):
        run("schedule=ppll", "gpus=2", *own_model("NotUnits"), *DATA, "batch_size=8")
