"""Conversion of reports to lines of the metrics file."""

import json
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.leaves.metric_lines import LINE_KEYS
from ppll_cli.observe.metrics import Metrics
from ppll_cli.observe.runs import find, finite
from ppll_cli.tasks.classification import Classification
from tests.other_task import OtherTask

MODULES = 3


def report(module: int, split: str, **changes: object) -> dict[str, Any]:
    """Return a report of ten samples in half a second. The mean loss is 2, and four are correct."""
    return {
        "kind": "metrics",
        "stage": 1,
        "module": module,
        "split": split,
        "step": 40,
        "epoch": 4,
        "loss": 20.0,
        "samples": 10,
        "scores": {"accuracy": 0.4},
        "seconds": 0.5,
        "at_s": 0.0,
        **changes,
    }


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    with Metrics(tmp_path / "metrics.jsonl", Classification(3), MODULES) as metrics:
        yield metrics


def written(metrics: Metrics) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.path.read_text().splitlines()]


def test_a_report_becomes_a_line(metrics: Metrics) -> None:
    line = metrics.add(report(1, "train"))
    assert {*line} - {"accuracy"} <= LINE_KEYS
    assert line == {
        "step": 40,
        "epoch": 4,
        "split": "train",
        "module": 1,
        "stage": 1,
        "loss": 2.0,
        "accuracy": 0.4,
        "samples_per_second": 20.0,
        "seconds": line["seconds"],
    }
    assert written(metrics) == [line]  # immediately, not only when the file is closed


def test_a_line_of_training_has_values_of_its_last_step(metrics: Metrics) -> None:
    line = metrics.add(report(2, "train", last_step={"lr": 0.1, "grad_norm": inf}))
    assert (line["lr"], line["grad_norm"]) == (0.1, None)
    assert written(metrics) == [line]
    assert metrics.result("train") == {"loss": 2.0, "accuracy": 0.4}


def test_seconds_continue_from_the_checkpoint_of_a_resumed_run(tmp_path: Path) -> None:
    """Start-up does not count.

    Work after the checkpoint from which the run resumes does not count either.
    """

    def train(metrics: Metrics, *steps: int) -> list[float]:
        metrics.begin(100.0)
        with metrics:
            return [
                metrics.add(report(2, "test", step=step, at_s=100.0 + 2.0 * number))["seconds"]
                for number, step in enumerate(steps, 1)
            ]

    first = Metrics(tmp_path / "m", Classification(3), MODULES)
    assert train(first, 10, 20, 30) == [2.0, 4.0, 6.0]
    again = Metrics(tmp_path / "m", Classification(3), MODULES)
    again.go_back(20, {}, evaluated=True)
    assert train(again, 30, 40) == [6.0, 8.0]


@pytest.mark.parametrize(
    ("evaluated", "incomplete", "stay"),
    [
        (False, False, ["train"]),
        (True, False, ["train", "test", "test_ema"]),
        (True, True, ["test", "test_ema"]),
        (False, True, []),
    ],
)
def test_evaluations_that_will_be_repeated_are_dropped_on_resuming(
    tmp_path: Path, evaluated: bool, incomplete: bool, stay: list[str]
) -> None:
    """If the evaluation is repeated, its lines are dropped, also those of averaged weights."""
    first = Metrics(tmp_path / "m", Classification(3), MODULES)
    with first:
        for step in (10, 20, 30):
            for split in ("train", "test", "test_ema"):
                first.add(report(2, split, step=step))
    again = Metrics(tmp_path / "m", Classification(3), MODULES)
    again.go_back(20, {}, evaluated=evaluated, incomplete=incomplete)
    lines = [(line["step"], line["split"]) for line in written(again)]
    assert lines == [(10, "train"), (10, "test"), (10, "test_ema"), *((20, each) for each in stay)]


def test_lines_of_the_last_module_count_as_those_of_the_model(metrics: Metrics) -> None:
    modules = [metrics.add(report(module, "test"))["module"] for module in range(MODULES)]
    assert modules == [0, 1, None]


def test_lines_are_appended(tmp_path: Path) -> None:
    for step in (1, 2):
        with Metrics(tmp_path / "m", Classification(3), MODULES) as metrics:
            metrics.add(report(0, "train", step=step))
    assert [line["step"] for line in written(metrics)] == [1, 2]


@pytest.mark.parametrize("loss", [nan, inf, -inf])
def test_a_nonfinite_loss_is_null(metrics: Metrics, loss: float) -> None:
    metrics.add(report(2, "train", loss=loss))
    assert written(metrics)[0]["loss"] is None
    assert metrics.train_loss is None
    assert finite(loss) is None
    assert finite(-0.5) == -0.5


def test_a_report_of_zero_seconds_has_a_positive_speed(metrics: Metrics) -> None:
    assert metrics.add(report(0, "test", seconds=0.0))["samples_per_second"] > 0


def test_train_loss_is_the_models_mean_over_the_last_epoch(metrics: Metrics) -> None:
    assert metrics.train_loss is None
    metrics.add(report(2, "train", epoch=1, loss=50.0))
    assert metrics.train_loss == 5.0
    metrics.add(report(2, "train", epoch=2, loss=20.0))
    metrics.add(report(2, "train", epoch=2, loss=1.0, samples=2))  # the mean is weighted by samples
    for other in (report(1, "train", epoch=2), report(2, "test", epoch=2)):
        metrics.add({**other, "loss": 1e9})
    assert metrics.train_loss == 21.0 / 12


def test_the_result_is_that_of_the_latest_evaluation(metrics: Metrics) -> None:
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


def test_the_last_step_is_the_highest_of_any_line(metrics: Metrics) -> None:
    assert metrics.last_step == 0
    for step in (10, 50, 40):  # a late stage may report after an early stage that is ahead
        metrics.add(report(0, "train", step=step))
    assert metrics.last_step == 50


# Return to an earlier step

STEPS = (10, 20, 30)


def recorded(tmp_path: Path) -> tuple[Metrics, dict[int, dict[str, Any]]]:
    """Return the metrics of a run, and the state after each of its epochs."""
    states = {}
    with Metrics(tmp_path / "metrics.jsonl", Classification(3), MODULES) as metrics:
        for epoch, step in enumerate(STEPS, 1):
            for module in (0, 2):
                for split in ("train", "test"):
                    loss = 0.1 * step + module
                    metrics.add(report(module, split, step=step, epoch=epoch, loss=loss))
            states[step] = json.loads(json.dumps(metrics.state()))
    return metrics, states


def again(metrics: Metrics) -> Metrics:
    """Return the metrics object of the resumed run."""
    return Metrics(metrics.path, metrics.task, metrics.modules)


@pytest.mark.parametrize(("step", "kept"), [(30, 12), (29, 8), (20, 8), (15, 4), (9, 0), (0, 0)])
def test_going_back_drops_lines_past_a_step(tmp_path: Path, step: int, kept: int) -> None:
    before, states = recorded(tmp_path)
    lines = before.path.read_text().splitlines(keepends=True)
    metrics = again(before)
    metrics.go_back(step, states.get(step, {}), evaluated=True)
    assert metrics.path.read_text() == "".join(lines[:kept])  # byte for byte, in the same order
    assert metrics.last_step == (step // 10 * 10 if kept else 0)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}


@pytest.mark.parametrize("step", STEPS)
def test_going_back_restores_the_state_of_a_step(tmp_path: Path, step: int) -> None:
    before, states = recorded(tmp_path)
    metrics = again(before)
    metrics.go_back(step, states[step], evaluated=True)
    assert metrics.state() == states[step]
    assert metrics.train_loss == (0.1 * step + 2) / 10
    assert metrics.result("test") == {"loss": (0.1 * step + 2) / 10, "accuracy": 0.4}
    assert metrics.result("test", module=0) == {"loss": 0.1 * step / 10, "accuracy": 0.4}
    assert metrics.result("val") is None


def test_going_back_keeps_the_loss_of_a_part_of_an_epoch(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m", Classification(3), MODULES) as before:
        before.add(report(2, "train", epoch=1, step=9, loss=1e9))
        before.add(report(2, "train", epoch=2, step=12, loss=20.0))
        state = before.state()
        before.add(report(2, "train", epoch=2, step=14, loss=1e9))
    metrics = again(before)
    metrics.go_back(12, state, evaluated=True)
    with metrics:
        metrics.add(report(2, "train", epoch=2, step=20, loss=1.0, samples=2))
    assert metrics.train_loss == 21.0 / 12
    assert [line["step"] for line in written(metrics)] == [9, 12, 20]


def test_an_incomplete_line_is_dropped_on_resuming(tmp_path: Path) -> None:
    """The run stopped after step 13, between two complete reports.

    The incomplete line counts until the run resumes.
    """
    with Metrics(tmp_path / "m", Classification(3), MODULES) as before:
        before.add(report(0, "train", epoch=2, step=10))
        before.add(report(2, "train", epoch=2, step=10))
        before.add(report(0, "train", epoch=2, step=13, complete=False))
        before.add(report(2, "train", epoch=2, step=13, loss=4.0, samples=2, complete=False))
        before.add(report(2, "test", epoch=2, step=13))
        assert before.train_loss == 24.0 / 12
        state = before.state()
    metrics = again(before)
    metrics.go_back(13, state, evaluated=True, incomplete=True)
    kept = [(line["step"], line["split"]) for line in written(metrics)]
    assert kept == [(10, "train"), (10, "train"), (13, "test")]
    assert metrics.train_loss == 2.0
    with metrics:
        metrics.add(report(2, "train", epoch=2, step=20, loss=7.0, samples=5))
    assert metrics.train_loss == 27.0 / 15


def test_an_incomplete_line_may_begin_an_epoch(metrics: Metrics) -> None:
    metrics.add(report(2, "train", epoch=1, loss=50.0))
    metrics.add(report(2, "train", epoch=2, step=41, loss=3.0, samples=1, complete=False))
    assert metrics.train_loss == 3.0


def test_going_back_drops_an_evaluation_that_is_repeated(tmp_path: Path) -> None:
    """Earlier evaluations and the training until this step are kept."""
    before, states = recorded(tmp_path)
    metrics = again(before)
    metrics.go_back(20, states[20], evaluated=False)
    kept = [(line["step"], line["split"]) for line in written(metrics)]
    assert kept == [(10, "train"), (10, "test")] * 2 + [(20, "train")] * 2
    assert metrics.result("test") == {"loss": (0.1 * 10 + 2) / 10, "accuracy": 0.4}
    assert metrics.train_loss == (0.1 * 20 + 2) / 10
    assert metrics.last_step == 20


def test_going_back_to_the_start_drops_everything(tmp_path: Path) -> None:
    before, _ = recorded(tmp_path)
    with before:  # only another program's file could have lines of step 0
        before.add(report(2, "train", step=0))
    metrics = again(before)
    metrics.go_back(0, {}, evaluated=True)
    assert metrics.path.read_text() == ""
    assert (metrics.train_loss, metrics.result("test"), metrics.last_step) == (None, None, 0)


@pytest.mark.parametrize(
    "end", [b'{"step": 20, "ep', b'{"step": 20}'[:-1], b"\0" * 9, b"\xff\n", b"7\n", b"[]\n", b"\n"]
)
def test_going_back_drops_incomplete_lines_at_the_end(tmp_path: Path, end: bytes) -> None:
    """A killed run leaves half a line. After a power failure, the end can be any bytes."""
    before, states = recorded(tmp_path)
    whole = before.path.read_bytes()
    before.path.write_bytes(whole + end)
    metrics = again(before)
    metrics.go_back(30, states[30], evaluated=True)
    assert metrics.path.read_bytes() == whole
    with metrics:
        metrics.add(report(2, "train", step=40))
    assert len(written(metrics)) == 13


def test_going_back_works_without_a_file(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m", Classification(3), MODULES)
    metrics.go_back(10, {}, evaluated=True)
    assert metrics.path.read_text() == ""


def test_a_task_may_report_more_than_its_metric(tmp_path: Path) -> None:
    """All scores are in the lines and in the summary. The metric comes first."""
    with Metrics(tmp_path / "metrics.jsonl", OtherTask(), MODULES) as metrics:
        line = metrics.add(report(2, "test", scores={"distance": 3.0, "half": 1.5}))
    assert (line["distance"], line["half"]) == (3.0, 1.5)
    assert metrics.result("test") == {"loss": 2.0, "distance": 3.0, "half": 1.5}
    assert metrics.history("test") == {40: 3.0}
    (tmp_path / "config.json").write_text('{"choices": {}}')
    (found,) = find([tmp_path])
    assert [evaluation.value for evaluation in found.evaluations] == [3.0]
