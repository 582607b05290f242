"""`recover=stage` with real processes: the stage that was hurt starts again, and nothing else."""

import gc
import json
import logging
import multiprocessing
import signal
import sys
import weakref
from itertools import pairwise
from pathlib import Path

import pytest

from ppll_cli.errors import WorkerFailedError
from ppll_cli.job.job import Job
from ppll_cli.job.links import Recovery
from ppll_cli.launch.record import DIGEST, write_record
from ppll_cli.launch.watched import Watched
from ppll_cli.leaves.files import write_json
from scripts.benchmarks.session import Process
from tests.conftest import Result, Runner, assert_same_run, own_model, resumed
from tests.warm import WarmSession

DATA = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
DATA += ["batch_size=8", "epochs=3", "eval_every=1", "schedule=ppll", "gpus=3"]
STAGE = ["recover=stage", "recover.every=2"]


def hurt(run: Runner, tmp_path: Path, act: str, *overrides: str) -> Result:
    """Run a model that once does something to its worker, for example kill it."""
    model = own_model("Faulty", unit="second", act=act, once=str(tmp_path / "once"))
    return run(*model, *DATA, *STAGE, *overrides)


@pytest.mark.parametrize(
    "act", ["kill", *(pytest.param(a, marks=pytest.mark.slow) for a in ("raise", "exhaust"))]
)
def test_a_worker_that_fails_once_starts_again(
    run: Runner, tmp_path: Path, act: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "never").touch()
    harmless = own_model("Faulty", unit="second", act=act, once=str(tmp_path / "never"))
    plain = run(*harmless, *DATA)
    with caplog.at_level(logging.INFO):
        result = hurt(run, tmp_path, act)
    assert_same_run(result, plain)
    (restart,) = result.summary["restarts"]
    assert (restart["stage"], restart["seconds"] > 0) == (1, True)
    assert "TrainBatch(step=2" in restart["batch"]
    told = [line for each in caplog.messages for line in each.splitlines()]
    assert "  stage 1 restarts; the other stages wait for it" in told
    assert any(line.startswith("stage 1 continues after ") for line in told)
    written = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    keys = [(line["step"], line["split"], line["module"]) for line in lines]
    assert len(keys) == len({*keys})
    assert result.summary["recover"] == {"every": 2}
    assert not {"recover", "restarts"} & plain.summary.keys()
    assert not multiprocessing.active_children()


def test_a_worker_that_hangs_starts_again(run: Runner, tmp_path: Path) -> None:
    result = hurt(run, tmp_path, "wait", "progress_limit=4", "timeline=true")
    (restart,) = result.summary["restarts"]
    assert restart["error"].startswith("no progress for ")
    events = json.loads((result.run_dir / "timeline.json").read_text())["traceEvents"]
    bars = [event for event in events if event["ph"] == "X"]
    (event,) = [bar for bar in bars if bar["name"] == "restart"]
    assert event["tid"] == restart["stage"]
    assert event["args"] == {key: restart[key] for key in ("error", "phase", "batch")}
    assert event["dur"] == pytest.approx(1e6 * restart["seconds"], abs=1)
    assert {bar["tid"] for bar in bars} == {0, 1, 2}
    own = sorted((bar["ts"], bar["dur"]) for bar in bars if bar["tid"] == restart["stage"])
    assert all(one[0] + one[1] <= other[0] + 0.01 for one, other in pairwise(own))
    for stage in result.summary["stages"]:
        assert 0 < stage["snapshot_fraction"] < 1


def test_a_run_that_has_ended_keeps_no_shared_memory(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next job of a sweep needs it, maybe before Python's next garbage collection."""
    begun: list[weakref.ref[Watched]] = []
    begin = Watched.begin

    def noted(watched: Watched, job: Job, recovery: Recovery | None) -> None:
        begun.append(weakref.ref(watched))
        begin(watched, job, recovery)

    monkeypatch.setattr(Watched, "begin", noted)
    gc.disable()
    try:
        run(*DATA, *STAGE, "max_steps=1")
        assert [each() for each in begun] == [None] * 3
    finally:
        gc.enable()


def test_a_fault_that_comes_back_after_two_restarts_ends_the_run(
    run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """The third pass of each process fails, and with `every=100` it is always the same batch."""
    model = own_model("Faulty", unit="second", act="raise")
    with pytest.raises(WorkerFailedError, match="the third pass is too much") as failure:
        run(*model, *DATA, "recover=stage", "recover.every=100")
    assert "step=2" in failure.value.report["batch"]
    told = [line for each in caplog.messages for line in each.splitlines()]
    assert told.count("  stage 1 restarts; the other stages wait for it") == 2
    assert any(line.startswith("  to continue: ") for line in told)
    assert not multiprocessing.active_children()


def test_a_loss_that_is_not_finite_ends_the_run_without_a_restart(
    run: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WorkerFailedError, match="is not finite"):
        hurt(run, tmp_path, "blow_up")
    assert not any("restarts" in message for message in caplog.messages)


@pytest.mark.slow
def test_a_run_of_an_older_version_can_be_resumed_with_recover_stage(
    run: Runner, tmp_path: Path
) -> None:
    """The record of a run of an older version has no group `recover`, which means `off`.

    The summary keeps the restarts before the run was resumed.
    """
    (tmp_path / "never").touch()
    harmless = own_model("Faulty", unit="second", act="kill", once=str(tmp_path / "never"))
    plain = run(*harmless, *DATA)
    begun = run(*harmless, *DATA, "max_steps=5")
    record = json.loads((begun.run_dir / "config.json").read_text())
    del record["recover"], record["choices"]["recover"]
    (begun.run_dir / "config.json").unlink()
    write_record(begun.run_dir, {k: v for k, v in record.items() if k not in ("format", DIGEST)})
    classes = [harmless[0], "max_steps=null"]
    restarts = [{"stage": 1, "phase": "starting", "batch": None, "error": "gone", "seconds": 0.5}]
    write_json(begun.run_dir / "summary.json", {**begun.summary, "restarts": restarts})
    result = resumed(begun, *classes, "recover=stage")
    assert_same_run(result, plain)
    assert result.summary["restarts"] == restarts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")
@pytest.mark.timeout(300)
def test_only_a_stage_that_was_killed_or_stopped_gets_a_new_process(tmp_path: Path) -> None:
    """One stage is killed, then another is stopped; only they get new processes."""
    vit = ["model.dim=16", "model.depth=2", "model.heads=2", "device=cpu", "threads=1"]
    folder = tmp_path / "run"
    given = [*DATA, *vit, "recover=stage", "epochs=1000000", f"hydra.run.dir={folder}"]
    with WarmSession(given, tmp_path / "printed") as session:

        def hit(number: signal.Signals, stage: int) -> list[Process]:
            before = session.workers()
            said = session.printed().count(" continues after ")
            session.signal(number, before[stage].pid)
            assert session.wait_until(lambda: session.printed().count(" continues after ") > said)
            assert {p.pid for p in session.workers()} & {p.pid for p in before} == {
                p.pid for n, p in enumerate(before) if n != stage
            }
            return session.workers()

        assert session.wait_until(lambda: "epoch 1/" in session.printed()), session.printed()
        hit(signal.SIGKILL, 1)
        hit(signal.SIGSTOP, 0)
        session.signal(signal.SIGTERM, session.pid)
        assert session.wait() == 128 + signal.SIGTERM
        assert session.left() == []
        printed = session.printed()
    assert "ppll-run: stage 1 (cpu): the worker process is gone (killed by SIGKILL" in printed
    assert "ppll-run: stage 0 (cpu): the worker process is stopped: no sign of life" in printed
    assert "Traceback" not in printed
    assert [each["stage"] for each in json.loads((folder / "summary.json").read_text())["restarts"]]
