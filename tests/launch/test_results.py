"""The end of a run whose results cannot be written."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppll_cli.config import settings
from ppll_cli.config.commands import command
from ppll_cli.errors import PpllError, RunFailedError, WorkerFailedError
from ppll_cli.job import checkpoint
from ppll_cli.job.manifest import Manifest
from ppll_cli.launch import failure, results, run
from ppll_cli.launch.launcher import Ending
from ppll_cli.launch.run import Run
from ppll_cli.observe.runs import CONFIG_FILE
from tests.conftest import compose_config

TINY = ["data=synthetic", "data.size=8", "data.train_samples=24", "data.test_samples=6"]
TINY += ["batch_size=6", "model.dim=16", "model.depth=2", "device=cpu", "threads=1"]
Log = pytest.LogCaptureFixture
GO_ON = command("ppll-run", "resume=")


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs with a fake launcher, in `tmp_path / "run"`."""

    def end(launch: Callable[[Path], Any]) -> Any:
        folder = tmp_path / "run"
        folder.mkdir()
        config, choices = compose_config(TINY)
        monkeypatch.setattr(run, "launch", lambda *_: launch(folder))
        return Run(settings.parse(config), config, choices, folder).execute()

    return end


def broken(_: Path) -> None:
    raise WorkerFailedError({"stage": 1, "device": "cpu", "error": "ValueError: the root cause"})


def test_a_summary_that_cannot_be_written_does_not_hide_the_root_cause(
    end: Callable[..., Any], caplog: Log
) -> None:
    def fail(folder: Path) -> None:
        (folder / "summary.json").mkdir()
        broken(folder)

    with pytest.raises(WorkerFailedError, match="the root cause"):
        end(fail)
    first, second = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert first.startswith("ppll-run: stage 1 (cpu): ValueError: the root cause\n")
    assert f"  to continue: {GO_ON}" in first
    assert second.startswith("  also: results cannot be written: Is a directory")


def test_a_run_directory_that_is_gone_does_not_hide_the_root_cause(
    end: Callable[..., Any], caplog: Log
) -> None:
    def fail(folder: Path) -> None:
        shutil.rmtree(folder)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / "m.jsonl"))

    with pytest.raises(RunFailedError, match="results cannot be written: No such file") as caught:
        end(fail)
    assert "something removed or moved it during the run" in str(caught.value)
    first, second = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert first.startswith(f"ppll-run: {caught.value}\n")
    assert "the run cannot be resumed" in first
    assert second.startswith("  also: ")


def spoil_stage(folder: Path) -> None:
    """Flip a bit of a weight. safetensors has no checksum, so it reads the changed weight."""
    path = folder / "stage-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (spoil_stage, "DamagedError: stage-0.safetensors does not match its checksum"),
        (spoil_manifest, "DamagedError: its manifest cannot be read"),
    ],
)
def test_no_model_is_written_from_a_damaged_checkpoint(
    end: Callable[..., Any],
    tmp_path: Path,
    caplog: Log,
    damage: Callable[[Path], None],
    problem: str,
) -> None:
    """The run counts as failed, and its summary has the error."""

    def damaged(folder: Path) -> Ending:
        file = checkpoint.save_stage(folder, 3, 0, {"model.head.weight": torch.ones(2)})
        damage(checkpoint.finish(folder, Manifest(3, 1, (), {}, (file,)), keep=1))
        return Ending([], None)

    with pytest.raises(RunFailedError) as raised:
        end(damaged)
    assert str(raised.value).startswith(f"model.safetensors could not be written: {problem}")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", str(raised.value))
    assert f"to continue: {GO_ON}" in caplog.text
    assert not list((tmp_path / "run").glob("*.unfinished"))


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    """Its process ID is in the names, so the next process does not write files of these names."""
    names = ["model.safetensors", ".model.safetensors.12", ".model_ema.safetensors.12"]
    for name in names:
        (tmp_path / name).write_text("half")
    (tmp_path / "checkpoints" / ".step-3.unfinished").mkdir(parents=True)
    results.drop_unfinished(tmp_path)
    assert {each.name for each in tmp_path.rglob("*")} == {"checkpoints", "model.safetensors"}


def test_an_unexpected_exception_is_reported_as_a_failed_run(
    end: Callable[..., Any], tmp_path: Path
) -> None:
    def fail(_: Path) -> None:
        raise LookupError("a plug-in's own")

    with pytest.raises(RunFailedError, match="LookupError: a plug-in's own"):
        end(fail)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_pictures_that_fail_do_not_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, end: Callable[..., Any], tmp_path: Path, caplog: Log
) -> None:
    def leave(*_: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(results, "_draw", leave)
    monkeypatch.setattr(results, "write_samples", leave)
    monkeypatch.setattr(results, "_write_model", lambda *_, **__: True)
    assert end(lambda _: Ending([], None))["status"] == "completed"
    assert "the timeline could not be written: SystemExit: 3" in caplog.text
    assert "no samples could be written: SystemExit: 3" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), "results cannot be written: No space left: /r; a"),
        (OSError(errno.EROFS, "Read-only", "/r/x"), "results cannot be written: Read-only: /r/x;"),
        (
            OSError(errno.EROFS, "Read-only", "/dev/shm/x"),
            "results cannot be written: Read-only: /dev/shm/x; the disk is read-only: make /dev",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/x"), "No such file: /data/x"),
        (ValueError("I/O error (os error 28)"), "ValueError: I/O error (os error 28); a disk is"),
        (ValueError("[Errno 28] full"), "ValueError: [Errno 28] full; a disk is full: free some"),
        (
            RuntimeError("can't start new thread"),
            "RuntimeError: can't start new thread; end other processes, or allow more processes",
        ),
    ],
)
def test_a_message_has_the_remedy_of_its_error(error: Exception, said: str) -> None:
    assert str(failure.run_failed(error, Path("/r"))).startswith(said)


def test_a_workers_error_about_a_full_disk_comes_with_a_remedy(tmp_path: Path, caplog: Log) -> None:
    """No line of the code is at fault, so the traceback is only in the log file."""
    report = {"stage": 0, "device": "cpu", "error": "SafetensorError: I/O error (os error 28)"}
    report |= {"traceback": "Traceback"}
    error: PpllError = WorkerFailedError(report)
    failure.tell(error, tmp_path, "ppll-run")
    told = f"  a disk is full: free some space; `df -h {tmp_path} /dev/shm` shows which disk"
    assert told in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("repeats", [False, True])
def test_a_resume_is_recommended_only_if_it_can_help(
    repeats: bool, tmp_path: Path, caplog: Log
) -> None:
    """A resumed run computes a loss that is not finite again, bit for bit."""
    (tmp_path / CONFIG_FILE).touch()
    report = {"stage": 0, "device": "cpu", "error": "NonFiniteError: a loss is not finite"}
    failure.tell(WorkerFailedError(report | {"repeats": repeats}), tmp_path, "ppll-run resume=x")
    assert ("to continue: ppll-run resume=x" in caplog.text) != repeats
    assert ("start a new run instead" in caplog.text) == repeats


@pytest.mark.parametrize("on_purpose", [False, True])
def test_an_error_that_this_program_raises_has_no_traceback(
    on_purpose: bool, tmp_path: Path, caplog: Log
) -> None:
    """For example, the loss of `optim.lr=1e30` is not finite."""
    report = {"stage": 0, "device": "cpu", "error": "NonFiniteError: a loss is not finite"}
    report |= {"traceback": "Traceback", "on_purpose": on_purpose}
    error: PpllError = WorkerFailedError(report)
    failure.tell(error, tmp_path, "ppll-run")
    assert ("Traceback" in caplog.text) != on_purpose
