"""The process that workers are forked from: it imports torch once for all of them."""

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any


def context() -> ForkServerContext:
    """How worker processes are made. A plain fork would copy the parent's threads and locks."""
    return multiprocessing.get_context("forkserver")


def start() -> None:
    """Start the fork server, which imports what workers need while this process goes on.

    This module imports no torch, so that it can be called before anything heavy is imported here.
    """
    context().set_forkserver_preload(["ppll_cli.runtime.preload"])
    forkserver.ensure_running()


def stop() -> None:
    """End the fork server at once, where it turns out that no worker is needed."""
    server: Any = forkserver._forkserver  # the library offers no way to end it
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()  # reaps it
