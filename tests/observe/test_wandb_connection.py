"""If the server or process of wandb is missing or fails, the run goes on and loses no record."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from wandb.sdk import wandb_setup

from ppll_cli.config.commands import command
from ppll_cli.observe import wandb_tracker
from ppll_cli.observe.tracker import Tracked
from tests.observe.conftest import SUMMARY, line
from tests.observe.tracked_runs import guard, messages, services, track, tracked, wait_until
from tests.observe.wandb_file import recorded
from tests.observe.wandb_server import Server, wandb_server


@pytest.mark.parametrize(("mode", "level"), [(None, "INFO"), ("online", "WARNING")])
def test_without_a_key_a_run_is_recorded_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: Any, level: str
) -> None:
    caplog.set_level("INFO", wandb_tracker.__name__)
    track(tmp_path, 1, mode=mode)
    first, last = messages(caplog)
    assert "recorded offline: no key is configured" in first
    assert level in [it.levelname for it in caplog.records if it.getMessage() == first]
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert last == f"to upload what wandb recorded: {command('wandb', 'sync', str(folder))}"


def test_a_run_is_recorded_offline_if_the_server_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is recorded offline.

    By itself, wandb would raise an error and leave its process running.
    """
    import wandb

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        # It would also ask the server, for a fixed time of 10 s.
        monkeypatch.setattr(wandb, "login", lambda prompt: not prompt)
        found = track(tmp_path, 1, 2, mode="online", init_timeout_s=0.5)
    assert [row["step"] for row in found.rows] == [1, 2]
    (said,) = messages(caplog)
    assert said.startswith("wandb: recorded offline: ")
    assert services() == []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start a server, and set a key for it."""
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server


def test_with_a_key_a_run_is_recorded_online(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    track(tmp_path, 1, 2, entity="me", tags=["a"])
    identity = json.loads((tmp_path / "wandb-run.json").read_text())["id"]
    assert {run["name"] for run in server.runs} == {identity}
    run = server.runs[0]
    assert (run["project"], run["entity"], run["jobType"]) == ("p", "me", "gpipe")
    assert [row["step"] for row in server.rows] == [1, 2]
    assert capfd.readouterr().out == ""
    assert services() == []


def test_no_record_is_lost_if_the_network_fails_at_the_end(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The run waits for the allowed time. No record is lost."""
    guarded = guard(finish_timeout_s=1.0)
    guarded.start(tracked(tmp_path))
    guarded.metrics(line(1))
    wait_until(lambda: bool(server.runs))
    server.dead.set()
    guarded.metrics(line(2))
    began_s = time.monotonic()
    guarded.end(SUMMARY)
    assert time.monotonic() - began_s < 10
    (found,) = recorded(tmp_path)
    assert [row["step"] for row in found.rows] == [1, 2]
    (folder,) = tmp_path.glob("wandb/run-*")
    sync = command("wandb", "sync", str(folder))
    said = f"wandb had not finished uploading after 1 s; to upload the rest: {sync}"
    assert messages(caplog) == [said]
    assert services() == []


def test_a_folder_that_cannot_be_written_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = guard()
    guarded.start(tracked(tmp_path / "nothing"))
    guarded.end(SUMMARY)
    (said,) = messages(caplog)
    assert said.startswith("tracker=wandb has failed: FileNotFoundError: ")


def test_a_hanging_wandb_process_is_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the run nor the end of the program waits for ever."""
    guarded = guard(mode="offline")
    guarded._limit_s = 3.0
    tracker: Any = guarded._tracker
    start = tracker.start

    def start_and_stop(run: Tracked) -> None:
        start(run)
        (service,) = services()
        os.kill(service, signal.SIGSTOP)

    monkeypatch.setattr(tracker, "start", start_and_stop)
    guarded.start(tracked(tmp_path))
    assert guarded._started.wait(100.0)
    guarded.metrics(line(1))
    guarded.end(SUMMARY)
    lost, how = messages(caplog)
    assert lost.startswith("tracker=wandb has failed: it has not finished 3 s after the end")
    assert how.startswith(
        f"to upload what wandb did not receive: {command('wandb', 'sync', str(tmp_path / 'wandb'))}"
    )
    assert services() == []


def test_no_upload_is_proposed_if_wandb_hangs_before_its_run_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message named "nothing" as the command that uploads the records."""
    import wandb

    guarded = guard(mode="offline")
    guarded._limit_s = 0.1
    released = threading.Event()

    def hang(**_: Any) -> None:
        released.wait(100.0)
        raise TimeoutError

    process = Mock()
    setup = SimpleNamespace(_connection=SimpleNamespace(_cleanup=released.set, _proc=process))
    monkeypatch.setattr(wandb, "init", hang)
    monkeypatch.setattr(wandb_setup, "singleton", lambda: setup)
    guarded.start(tracked(tmp_path))
    guarded.end(SUMMARY)
    assert process._process.kill.called
    (lost,) = messages(caplog)
    assert lost.startswith("tracker=wandb has failed: it has not finished")


KILLED = """
import os, signal
from pathlib import Path
from tests.observe.conftest import line
from tests.observe.tracked_runs import guard, services, tracked, wait_until
from tests.observe.wandb_file import recorded
guarded = guard(mode="offline")
guarded.start(tracked(Path("run")))
guarded.metrics(line(1))
wait_until(lambda: any(found.rows for found in recorded(Path("run"))), 10)  # before it ends
print(services()[0], flush=True)
signal.pause()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no process descriptors here")
def test_wandbs_process_ends_if_the_parent_is_killed(tmp_path: Path) -> None:
    """The records stay on disk."""
    (tmp_path / "run").mkdir()
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src")])
    with subprocess.Popen(
        [sys.executable, "-c", KILLED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        service = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
        ended, _, _ = select.select([service], [], [], 10)
        os.close(service)
    assert ended
    (found,) = recorded(tmp_path / "run")
    assert [row["step"] for row in found.rows] == [1]
