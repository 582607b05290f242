"""The fork server: its environment, and what happens if it does not answer."""

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver as library
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from ppll_cli.errors import ConfigError, RunFailedError
from ppll_cli.leaves import forkserver
from ppll_cli.leaves.programs import STOPPING

WAIT_S = 60.0


class Recorded:
    """Replaces multiprocessing's processes, and records signals and environment at their start."""

    def __init__(self) -> None:
        self.masks: list[set[int]] = []
        self.environments: list[str | None] = []

    def ensure_running(self) -> None:
        """Record what a new process would inherit, without starting one."""
        self.masks.append({*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))})
        self.environments.append(os.environ.get("PYTHONSAFEPATH"))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    made = Recorded()
    monkeypatch.setattr(library, "ensure_running", made.ensure_running)
    monkeypatch.setattr(resource_tracker, "ensure_running", made.ensure_running)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return made


def test_started_processes_block_signals_of_the_terminal(recorded: Recorded) -> None:
    """SIGHUP of a lost connection once ended multiprocessing's resource tracker, and so the run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    forkserver.start()
    tracker, server = recorded.masks
    assert signal.SIGHUP in tracker
    assert {*STOPPING} <= server
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_started_processes_do_not_import_from_the_current_directory(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forkserver.start()
    assert recorded.environments == ["of ppll-run"] * 2
    assert "PYTHONSAFEPATH" not in os.environ
    monkeypatch.chdir(Path(forkserver.__file__).parents[2])  # found only as `.`
    forkserver.start()
    assert recorded.environments[2:] == [None] * 2


def test_the_socket_is_in_the_programs_own_folder(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {}
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(_config=config))
    monkeypatch.setattr(forkserver, "socket_folder", lambda: tmp_path)
    forkserver.start()
    assert config["tempdir"] == str(tmp_path)


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Start a process that takes the place of the fork server, and return its id."""
    code = "import signal; signal.pause()"
    process_id = os.posix_spawn(sys.executable, [sys.executable, "-c", code], {})
    monkeypatch.setattr(library, "_forkserver", SimpleNamespace(_forkserver_pid=process_id))
    monkeypatch.setattr(forkserver, "LOOK_S", 0.01)
    yield process_id
    with suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(process_id, 0)


class Waits:
    """A worker whose start waits until the fork server is dead, and then fails."""

    def __init__(self, server: int) -> None:
        self._server = server

    def start(self) -> None:
        """Wait until the server has been killed."""
        _, status = os.waitpid(self._server, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        raise EOFError


@pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")
def test_a_stopped_fork_server_is_killed_and_reported(
    sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forkserver, "STOPPED_LIMIT_S", 0.05)
    os.kill(sleeper, signal.SIGSTOP)
    worker: Any = Waits(sleeper)
    with pytest.raises(RunFailedError, match=r"fork server was stopped \(SIGSTOP\)"):
        forkserver.begin(worker)


def test_a_fork_server_that_never_answers_is_killed_and_reported(
    sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forkserver, "ANSWER_LIMIT_S", 0.05)
    worker: Any = Waits(sleeper)
    with pytest.raises(RunFailedError, match=r"fork server did not answer for \d+ s"):
        forkserver.begin(worker)


def test_a_missing_fork_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        raise ConnectionRefusedError

    worker: Any = SimpleNamespace(start=start)
    with pytest.raises(RunFailedError, match="fork server is gone; if nobody killed it"):
        forkserver.begin(worker)


def test_a_limit_of_processes_is_named(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a login node, the program ended with a traceback."""

    def ensure_running() -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(library, "ensure_running", ensure_running)
    with pytest.raises(ConfigError, match=r"^ulimit -u=\w+: the system starts no further process"):
        forkserver.start()


def test_a_removed_socket_does_not_fail_a_complete_run(
    sleeper: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cleaner of /tmp had removed it, and a long run ended with a traceback and status 1."""
    server: Any = library.ForkServer()
    server._forkserver_pid, server._forkserver_address = sleeper, str(tmp_path / "listener")
    server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(library, "_forkserver", server)
    forkserver.stop()
    assert server._forkserver_pid is None


def test_a_removed_socket_is_named_if_a_worker_is_to_be_started(
    sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of a sweep's next job spoke of results that cannot be written."""

    def start() -> None:
        raise FileNotFoundError

    monkeypatch.setattr(library._forkserver, "_forkserver_address", "/t/listener", raising=False)
    worker: Any = SimpleNamespace(start=start)
    with pytest.raises(RunFailedError, match="something removed /t/listener, so no worker can be"):
        forkserver.begin(worker)


def test_time_during_which_all_processes_were_stopped_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After Ctrl-Z for an hour, this process notices only one long interval."""
    monkeypatch.setattr(forkserver, "is_stopped", lambda _: True)
    monkeypatch.setattr(forkserver, "kill", lambda: pytest.fail("it was killed"))
    hours = iter([False, False, True])  # `wait` returns after an hour each time
    ended: Any = SimpleNamespace(wait=lambda _: next(hours))
    problem = list[str]()
    forkserver._end_if_stopped(ended, problem)
    assert problem == []
    assert next(hours, None) is None


def test_the_watch_ends_once_the_worker_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Event()

    def watched(ended: Event, _: list[str]) -> None:
        assert ended.wait(WAIT_S)
        seen.set()

    monkeypatch.setattr(forkserver, "_end_if_stopped", watched)
    worker: Any = SimpleNamespace(start=lambda: None)
    forkserver.begin(worker)
    assert seen.wait(WAIT_S)
