"""When the launcher restarts a worker, when a fault ends the run, and how restarts are shown."""

import logging
from collections import deque
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from ppll_cli.config.sections import Recover
from ppll_cli.job.job import Seat
from ppll_cli.launch import restarts
from ppll_cli.launch.restarts import RestartLog, Restarts
from ppll_cli.observe.progress import KINDS, Look
from ppll_cli.observe.spans import Restart
from tests.conftest import prepared

DATA = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
VIT = ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=8"]


class Process:
    def join(self, timeout: float) -> None: ...


class Worker:
    """A worker that notes what is done with it."""

    def __init__(self, stage: int, left: list[dict[str, Any]] | None = None) -> None:
        self.seat, self.done = Seat(stage), None
        self.left, self.calls = left or [], deque[str]()
        self.process, self.pulse = Process(), self

    def kill(self) -> None:
        self.calls.append("kill")

    def read(self, limit_s: float) -> list[dict[str, Any]]:
        return self.left

    def clean_up(self) -> None:
        self.calls.append("clean up")

    def start_again(self) -> None: ...

    def begin(self, job: Any, recovery: Any) -> None:
        self.calls.append(f"begin after {recovery.saved}")


def fault(stage: int, batch: str | None = "batch 3", **more: Any) -> dict[str, Any]:
    return {"kind": "failed", "stage": stage, "replica": 0, "batch": batch, "error": "x", **more}


@pytest.fixture
def told() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def made(tmp_path: Path, told: list[dict[str, Any]]) -> Restarts:
    job = prepared(*DATA, *VIT, "recover=stage").job
    return Restarts(job, tmp_path, told.append)


def handle(made: Restarts, failures: list[dict[str, Any]], *workers: Worker) -> list[Any]:
    listed: Any = list(workers)
    return made.restart(failures, listed, lambda watched, report: None)


def test_only_the_worker_that_failed_starts_again(
    made: Restarts, told: list[dict[str, Any]]
) -> None:
    one, other = Worker(0), Worker(1)
    assert not handle(made, [fault(1)], one, other)
    assert list(other.calls) == ["kill", "clean up", "begin after -1"]
    assert not one.calls
    assert [(each["kind"], each["stage"]) for each in told] == [("restart", 1)]


def test_a_stage_next_to_another_machine_ends_the_run(
    made: Restarts, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    job = prepared(*DATA, *VIT, "recover=stage", "gpus=3").job
    made = Restarts(replace(job, homes=(0, 0, 1)), tmp_path, told.append)
    workers = Worker(0), Worker(1)
    assert made.recovery(Seat(0)) is not None
    assert made.recovery(Seat(1)) is None
    assert handle(made, [fault(0), fault(1)], *workers) == [fault(1)]
    assert not told
    assert not workers[0].calls
    assert not handle(made, [fault(0)], *workers)
    assert [each["stage"] for each in told] == [0]


def test_two_workers_that_fail_together_both_start_again(made: Restarts) -> None:
    workers = Worker(0), Worker(1)
    assert not handle(made, [fault(0), fault(1)], *workers)
    assert all("begin after -1" in each.calls for each in workers)


def test_two_reports_of_one_fault_cause_one_restart(made: Restarts) -> None:
    worker = Worker(0)
    assert not handle(made, [fault(0), fault(0, error="also late")], worker)
    assert list(worker.calls) == ["kill", "clean up", "begin after -1"]


@pytest.mark.parametrize("batch", ["batch 3", None])
def test_the_third_fault_at_the_same_batch_ends_the_run(made: Restarts, batch: str | None) -> None:
    worker = Worker(0)
    for _ in range(2):
        assert not handle(made, [fault(0, batch)], worker)
    assert handle(made, [fault(0, batch)], worker) == [fault(0, batch)]
    assert worker.calls.count("begin after -1") == 2


def test_faults_at_different_batches_do_not_end_the_run(made: Restarts) -> None:
    worker = Worker(0)
    for number in (1, 1, 2, 1, 1, 2):
        assert not handle(made, [fault(0, f"batch {number}")], worker)


def test_a_fault_that_is_marked_as_final_ends_the_run_at_once(made: Restarts) -> None:
    """As when a loss is not finite: a new process would compute it again."""
    worker = Worker(0)
    assert handle(made, [fault(0, final=True)], worker)
    assert not worker.calls


def test_no_worker_starts_again_if_one_fault_ends_the_run(made: Restarts) -> None:
    one, other = Worker(0), Worker(1)
    assert handle(made, [fault(0), fault(1, final=True)], one, other) == [fault(1, final=True)]
    assert not one.calls


def test_one_restart_more_than_allowed_within_the_minutes_ends_the_run(
    made: Restarts, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: now_s, perf_counter=lambda: now_s)
    monkeypatch.setattr(restarts, "time", clock)
    recover = Recover(name="stage", tries=2, minutes=10)
    settings = made._job.settings.model_copy(update={"recover": recover})
    made._job = replace(made._job, settings=settings)
    worker = Worker(0)
    for number, minute in enumerate((0, 5, 11, 16)):
        now_s = 60.0 * minute
        assert not handle(made, [fault(0, f"batch {number}")], worker)
    now_s += 60
    assert handle(made, [fault(0, "batch 9")], worker)


def test_a_worker_that_fails_after_its_work_is_done_does_not_start_again(made: Restarts) -> None:
    worker: Any = Worker(0)
    worker.done = {"kind": "done"}
    assert not handle(made, [fault(0)], worker)
    assert not worker.calls


def test_reports_that_a_new_worker_repeats_are_dropped(
    made: Restarts, told: list[dict[str, Any]]
) -> None:
    def report(kind: str, step: int, **more: Any) -> dict[str, Any]:
        return {"kind": kind, "stage": 0, "replica": 0, "step": step, **more}

    lines = [
        report("metrics", 10, split="train", module=0),
        report("metrics", 10, split="train", module=1),
        report("metrics", 10, split="test", module=1),
        report("counted", 10),
        report("saved", 10),
        report("metrics", 20, split="train", module=0),
    ]
    assert not any(map(made.repeats, lines))
    assert all(map(made.repeats, lines))
    assert not made.repeats(report("metrics", 30, split="train", module=0))
    assert not made.repeats(report("log", 10))
    assert not made.repeats({**report("saved", 10), "stage": 1})
    assert (recovery := made.recovery(Seat(0))) is not None
    assert recovery.saved == 10
    ready = {"kind": "ready", "stage": 0, "replica": 0, "at_s": 0.0}
    assert not made.repeats(ready)
    assert not told


def test_the_new_worker_is_announced_when_it_is_ready(
    made: Restarts, told: list[dict[str, Any]]
) -> None:
    ready = {"kind": "ready", "stage": 0, "replica": 0, "at_s": 0.0}
    made.repeats(ready)
    before_s = perf_counter()
    handle(made, [fault(0)], Worker(0))
    assert made.repeats({**ready, "at_s": perf_counter()})
    restart, restarted = told
    assert (restart["kind"], restarted["kind"]) == ("restart", "restarted")
    assert before_s <= restart["began_s"] == restarted["began_s"] <= restarted["ended_s"]


def test_a_late_ready_report_of_the_dead_worker_does_not_end_the_restart(
    made: Restarts, told: list[dict[str, Any]]
) -> None:
    """It was ready before it failed, and its report is read only afterwards."""
    ready = {"kind": "ready", "stage": 0, "replica": 0, "at_s": 0.0}
    worker: Any = Worker(0, left=[ready])
    read: list[bool] = []
    made.restart([fault(0)], [worker], lambda _, report: read.append(made.repeats(report)))
    assert read == [False]
    assert [each["kind"] for each in told] == ["restart"]
    made.repeats({**ready, "at_s": perf_counter()})
    assert [each["kind"] for each in told] == ["restart", "restarted"]
    assert told[0]["began_s"] == told[1]["began_s"] <= told[1]["ended_s"]


LOOKS = [Look(0, 0, 0, None, 0.0, dict.fromkeys(KINDS, 0.0))] * 3


@pytest.fixture
def log() -> RestartLog:
    return RestartLog(prepared(*DATA, *VIT, "model.depth=3", "gpus=3", "recover=stage").job)


def restart(stage: int, began_s: float, error: str = "gone") -> dict[str, Any]:
    where = {"stage": stage, "replica": 0, "device": "cpu", "phase": "Loss", "batch": "batch 3"}
    return {"kind": "restart", "began_s": began_s, "error": error, **where}


def goes_on(stage: int, began_s: float, ended_s: float) -> dict[str, Any]:
    where = {"stage": stage, "replica": 0}
    return {"kind": "restarted", "began_s": began_s, "ended_s": ended_s, **where}


def restarting(log: RestartLog) -> list[int]:
    return [stage for stage, look in enumerate(log.marked(LOOKS)) if look.restarts]


def test_a_stage_restarts_until_its_new_worker_goes_on(
    log: RestartLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert not restarting(log)
    log.take(restart(2, 10.0))
    log.take(restart(1, 10.0))
    assert restarting(log) == [1, 2]
    log.take(goes_on(2, 10.0, 12.5))
    assert restarting(log) == [1]
    log.take(goes_on(1, 10.0, 13.0))
    assert not restarting(log)
    assert "stage 2 continues after 2.5 s" in caplog.messages
    assert [(each["stage"], each["seconds"]) for each in log.listed()] == [(2, 2.5), (1, 3.0)]
    assert log.listed()[0].keys() == {"stage", "phase", "batch", "error", "seconds"}
    assert log.drawn() == [
        Restart(stage, 10.0, end_s, "gone", "Loss", "batch 3")
        for stage, end_s in ((2, 12.5), (1, 13.0))
    ]


def test_a_worker_that_fails_again_before_it_goes_on_restarts_twice(log: RestartLog) -> None:
    """The first restart never led anywhere, so it ends where the second one begins."""
    log.take(restart(1, 10.0, "first"))
    log.take(restart(1, 11.0, "second"))
    assert restarting(log) == [1]
    log.take(goes_on(1, 11.0, 14.0))
    assert [each["seconds"] for each in log.listed()] == [None, 3.0]
    drawn = [(each.error, each.start_s, each.end_s) for each in log.drawn()]
    assert drawn == [("first", 10.0, 11.0), ("second", 11.0, 14.0)]


def test_a_restart_under_way_is_not_drawn(log: RestartLog) -> None:
    log.take(restart(1, 10.0))
    assert not log.drawn()
    assert [each["seconds"] for each in log.listed()] == [None]
