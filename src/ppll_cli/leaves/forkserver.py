"""Controls the fork server, a process that imports torch once and from which workers are forked.

This module imports no torch, so the server can start before this process imports torch.
"""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from threading import Event, Thread
from typing import Any

from ppll_cli.errors import ConfigError, RunFailedError
from ppll_cli.leaves.programs import STOPPING
from ppll_cli.leaves.scratch import socket_folder

STOPPED_LIMIT_S = 6.0
"""Seconds to wait for an answer from a process that is stopped (SIGSTOP)."""

ANSWER_LIMIT_S = 600.0
"""Seconds that the fork server may take to start a worker. Before the first worker, the server
imports torch, perhaps from a slow disk."""

LOOK_S = 0.5
"""Interval in seconds at which a process that does not answer is checked."""

LEAVE_S = 5.0
"""Seconds to wait for the end of a killed process."""

MORE_PROCESSES = "end other processes, or allow more processes and threads: see `ulimit -u`"
"""What the user can do if the system starts no further process or thread."""

SAFE_PATH = ("PYTHONSAFEPATH", "of ppll-run")
"""Name and value of an environment variable that keeps the current directory out of `sys.path`."""


def context() -> ForkServerContext:
    """Return multiprocessing's forkserver context; `fork` would copy locks that threads hold."""
    return multiprocessing.get_context("forkserver")


def start() -> None:
    """Start the fork server if it does not run, and return while it imports the workers' modules.

    Raises:
        ConfigError: No folder can be created for the server's socket, or no process can be started.
    """
    known = (None, *multiprocessing.get_all_start_methods())
    if multiprocessing.get_start_method(allow_none=True) not in known:
        # In its processes, joblib sets a start method of its own. multiprocessing would also set it
        # in the workers, which do not know it.
        multiprocessing.set_start_method("forkserver", force=True)
    here: Any = multiprocessing.current_process()
    if here._config.get("tempdir") is None:  # so that multiprocessing makes no `pymp-*` in TMPDIR
        here._config["tempdir"] = str(socket_folder())
    context().set_forkserver_preload(["ppll_cli.launch.preload"])
    with _without_current_directory(), _limit_explained():
        # The resource tracker ignores SIGINT and SIGTERM by itself; SIGHUP is blocked for it here.
        with _blocked(signal.SIGHUP):
            resource_tracker.ensure_running()
        # The server starts with these signals blocked, until `launch.preload` unblocks them.
        with _blocked(*STOPPING):
            forkserver.ensure_running()


@contextmanager
def _limit_explained() -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        most = "unlimited" if limit == resource.RLIM_INFINITY else limit
        problem = "the system starts no further process for this user"
        raise ConfigError("ulimit -u", most, problem, MORE_PROCESSES) from None


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_current_directory() -> Iterator[None]:
    name, value = SAFE_PATH
    # If this package lies in the current directory, the server must find it there.
    found_there = os.path.relpath(Path(__file__).parents[2]) == "."
    if name in os.environ or found_there:
        yield
        return
    os.environ[name] = value  # the current directory may have a `torch.py`
    try:
        yield
    finally:
        del os.environ[name]


def begin(worker: ForkServerProcess) -> None:
    """Let the fork server start a worker.

    Raises:
        RunFailedError: The server has ended or does not answer, or its socket is gone.
    """
    ended, problem = Event(), list[str]()
    watcher = Thread(target=_end_if_stopped, args=(ended, problem), name="ppll-fork", daemon=True)
    watcher.start()
    try:
        worker.start()
    except (EOFError, ConnectionError) as error:
        ended.set()
        watcher.join()
        raise (RunFailedError(problem[0]) if problem else lost_helper("fork server")) from error
    except FileNotFoundError as error:
        server: Any = forkserver._forkserver
        gone = f"something removed {server._forkserver_address}, so no worker can be started"
        raise RunFailedError(gone) from error
    finally:
        ended.set()


class Child:
    """A child process of the fork server. It calls `work(*arguments, pipe)`.

    Attributes:
        link: This process's end of the pipe. `work` gets the other end.
        process: The child process.

    Raises:
        ConfigError: The fork server cannot be started.
        RunFailedError: The fork server does not start the child.
    """

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        start()
        self.link, there = context().Pipe()
        self.process = context().Process(target=work, args=(*arguments, there), daemon=True)
        begin(self.process)
        there.close()

    def close(self) -> None:
        """Kill the child, wait at most `LEAVE_S` seconds for its end, and close the pipe."""
        self.process.kill()
        self.process.join(LEAVE_S)
        self.link.close()


def _end_if_stopped(ended: Event, problem: list[str]) -> None:
    server: Any = forkserver._forkserver
    found = why_silent(ended.wait, lambda: is_stopped(server._forkserver_pid), ANSWER_LIMIT_S)
    if found:
        problem.append(f"multiprocessing's fork server {found}")
        kill()  # so that `begin` stops waiting


def why_silent(
    answered: Callable[[float], bool], stopped: Callable[[], bool], limit_s: float
) -> str:
    """Wait for the answer of another process.

    Args:
        answered: Waits at most the given seconds, and returns whether the answer has come.
        stopped: Returns whether the other process is stopped (SIGSTOP).
        limit_s: Largest time to wait, in seconds.

    Returns:
        "" if the answer has come; otherwise why it did not come, such as "was stopped (SIGSTOP)".
    """
    waited_s = stopped_s = 0.0
    while not answered(LOOK_S):
        # Count `LOOK_S`, not clock time, which would include pauses of this process (Ctrl-Z).
        waited_s += LOOK_S
        stopped_s = stopped_s + LOOK_S if stopped() else 0.0
        if stopped_s > STOPPED_LIMIT_S:
            return "was stopped (SIGSTOP)"
        if waited_s > limit_s:
            return f"did not answer for {waited_s:.0f} s"
    return ""


def is_stopped(process_id: int) -> bool:
    """Return whether a process is stopped (SIGSTOP); False if unknown."""
    with suppress(OSError):
        status = Path(f"/proc/{process_id}/stat").read_text()
        return status.rpartition(") ")[2][:1] in ("T", "t")
    return False


def lost_helper(name: str) -> RunFailedError:
    """Return the error to raise when a helper process of multiprocessing has ended."""
    return RunFailedError(
        f"multiprocessing's {name} is gone; if nobody killed it, the system was out of memory"
    )


def stop() -> None:
    """End the fork server immediately. Call this when no more workers are needed."""
    server: Any = forkserver._forkserver  # multiprocessing offers no public way to end it
    if server._forkserver_pid is not None:
        kill()
        # Something may have removed the socket, as cleaners of /tmp do.
        with suppress(FileNotFoundError):
            server._stop()  # waits for the ended process, then removes its socket


def kill() -> None:
    """Kill the fork server. A signal handler may call this right before the program exits."""
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        with suppress(ProcessLookupError):
            os.kill(server._forkserver_pid, signal.SIGKILL)


def helpers() -> dict[int, str]:
    """Return the names of multiprocessing's helper processes, by file descriptor.

    The file descriptor becomes ready for reading when the helper process ends.
    """
    server: Any = forkserver._forkserver
    tracker: Any = resource_tracker._resource_tracker
    found = {server._forkserver_alive_fd: "fork server", tracker._fd: "resource tracker"}
    return {descriptor: name for descriptor, name in found.items() if descriptor is not None}


def ended_helper(limit_s: float) -> str | None:
    """Return the name of a helper process that ends within `limit_s` seconds; None if none does."""
    servers = helpers()
    ended = wait(list(servers), limit_s)
    return next((name for end, name in servers.items() if end in ended), None)


def how_ended(code: int | None) -> str:
    """Describe how a process ended.

    `code` is the process's `exitcode`: its exit status, or -n if signal n ended it; None if the
    process has not ended.
    """
    if code is None or code >= 0:
        return f"exit status {code}"
    known = {each.value: each.name for each in signal.Signals}
    how = f"killed by {known.get(-code, f'signal {-code}')}"  # real-time signals have no names
    if -code == signal.SIGKILL:
        how += "; if nobody did, the system was out of memory"
    return how
