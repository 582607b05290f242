"""The process that workers are forked from: it imports torch once for all of them."""

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from ppll_cli.errors import RunFailedError


def context() -> ForkServerContext:
    """How worker processes are made. A plain fork would copy the parent's threads and locks."""
    return multiprocessing.get_context("forkserver")


def start() -> None:
    """Start the fork server, which imports what workers need while this process goes on.

    This module imports no torch, so that it can be called before anything heavy is imported here.
    """
    known = (None, *multiprocessing.get_all_start_methods())
    if multiprocessing.get_start_method(allow_none=True) not in known:
        # In a process of joblib's it is one of joblib's own, which workers would be told to use.
        multiprocessing.set_start_method("forkserver", force=True)
    context().set_forkserver_preload(["ppll_cli.runtime.preload"])
    forkserver.ensure_running()


def stop() -> None:
    """End the fork server at once, where no worker is needed any more."""
    server: Any = forkserver._forkserver  # the library offers no way to end it
    if server._forkserver_pid is not None:
        kill()
        server._stop()  # reaps it


def kill() -> None:
    """End the fork server, from a signal handler too; the program must leave after that."""
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        with suppress(ProcessLookupError):
            os.kill(server._forkserver_pid, signal.SIGKILL)


def lives() -> dict[int, str]:
    """The processes of multiprocessing's own: their names, by what `wait` finds ready at their end.

    It is the end of a pipe that only they read.
    """
    server: Any = forkserver._forkserver
    tracker: Any = resource_tracker._resource_tracker
    found = {server._forkserver_alive_fd: "fork server", tracker._fd: "resource tracker"}
    return {descriptor: name for descriptor, name in found.items() if descriptor is not None}


def gone(limit_s: float) -> str | None:
    """The name of one of multiprocessing's own processes that is gone, or is after so long."""
    servers = lives()
    ended = wait(list(servers), limit_s)
    return next((name for end, name in servers.items() if end in ended), None)


def begin(process: ForkServerProcess) -> None:
    """Have the fork server start a process.

    Raises:
        RunFailedError: The fork server is gone.
    """
    try:
        process.start()
    except (EOFError, ConnectionError) as error:
        raise lost("fork server") from error


def lost(name: str) -> RunFailedError:
    """What to raise where one of multiprocessing's own processes is gone."""
    return RunFailedError(
        f"multiprocessing's {name} is gone; if nobody killed it, the system was out of memory"
    )


def fate(code: int | None) -> str:
    """How a process ended that has this exit status."""
    if code is None or code >= 0:
        return f"exit status {code}"
    how = f"killed by {signal.Signals(-code).name}"
    if -code == signal.SIGKILL:
        how += "; if nobody did, the system was out of memory"
    return how
