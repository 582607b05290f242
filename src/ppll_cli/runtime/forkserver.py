"""The process that workers are forked from: it imports torch once for all of them."""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def context() -> ForkServerContext:
    """How worker processes are made. A plain fork would copy the parent's threads and locks."""
    return multiprocessing.get_context("forkserver")


def start() -> None:
    """Start the fork server, which imports what workers need while this process goes on.

    This module imports no torch, so that it can be called before anything heavy is imported here.
    """
    context().set_forkserver_preload(["ppll_cli.runtime.preload"])
    forkserver.ensure_running()
