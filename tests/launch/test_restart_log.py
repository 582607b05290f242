"""What a run shows of its restarts."""

import logging
from typing import Any

import pytest

from ppll_cli.launch.restart_log import RestartLog
from ppll_cli.observe.progress import KINDS, Look
from ppll_cli.observe.spans import Restart
from tests.conftest import prepared

DATA = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
VIT = ["model.dim=16", "model.depth=3", "model.heads=2", "batch_size=8", "gpus=3"]

LOOKS = [Look(0, 0, 0, None, 0.0, dict.fromkeys(KINDS, 0.0))] * 3


@pytest.fixture
def log() -> RestartLog:
    return RestartLog(prepared(*DATA, *VIT, "recover=stage").job)


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
    assert "stage 2 goes on after 2.5 s" in caplog.messages
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
