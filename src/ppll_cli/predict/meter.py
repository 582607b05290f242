"""A separate process that measures time and memory of networks.

If the parent process measured, it would hold the memory of networks and of a CUDA context during
the whole run, and the workers could not use this memory.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, ParamSpec, TypeVar

import torch

from ppll_cli.errors import WorkerFailedError
from ppll_cli.job.numerics import Numerics
from ppll_cli.leaves import forkserver
from ppll_cli.leaves.printable import error_text

LIMIT_S = 1800.0
"""Largest number of seconds for a request, which may include compiling."""

Found = TypeVar("Found")
P = ParamSpec("P")


def report_of(error: Exception) -> dict[str, Any]:
    """Return an exception as a report for WorkerFailedError. Call this in the `except` block."""
    return {"error": error_text(error), "traceback": traceback.format_exc()}


class Meter:
    """Starts the measuring process when it is first needed, and ends it."""

    def __init__(self, device: str, numerics: Numerics) -> None:
        self._device, self._numerics = device, numerics
        self._child: forkserver.Child | None = None

    def ask(
        self, threads: int, measure: Callable[P, Found], *args: P.args, **kwargs: P.kwargs
    ) -> Found:
        """Call `measure` in the measuring process with `threads` CPU threads; return its result.

        Raises:
            WorkerFailedError: Measuring failed or took longer than `LIMIT_S`, or the process died.
            RunFailedError: The process cannot be started.
        """
        child = self._child = self._child or forkserver.Child(serve, self._device, self._numerics)
        report: dict[str, Any]
        try:
            child.link.send((threads, partial(measure, *args, **kwargs)))
            if wait([child.link], LIMIT_S):
                report, found = child.link.recv()
            else:
                report, found = {"error": f"nothing was measured in {LIMIT_S:.0f} s"}, None
        except (EOFError, OSError):
            child.process.join(forkserver.LEAVE_S)
            fate = forkserver.how_ended(child.process.exitcode)
            report, found = {"error": f"the process is gone ({fate})"}, None
        if report:
            self.close()
            raise WorkerFailedError({"name": "measuring", "device": self._device, **report})
        answer: Found = found
        return answer

    def close(self) -> None:
        """End the process. The next request starts a new one."""
        if self._child is not None:
            self._child.close()
        self._child = None


def serve(device: str, numerics: Numerics, parent: Connection) -> None:
    """Answer requests in the measuring process until the parent closes its end of the pipe.

    A request is a number of threads and a function without arguments. An answer is a pair: the
    report of a failure (empty if the function succeeded), and the function's result.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    on, ready = torch.device(device), False
    while True:
        try:
            threads, measure = parent.recv()
            if not ready:  # prepare this process as a worker prepares itself
                torch.manual_seed(0)
                numerics.apply(on)
                if on.type == "cuda":
                    torch.cuda.set_device(on)
                ready = True
            torch.set_num_threads(threads)
            answer: tuple[dict[str, str], Any] = {}, measure()
        except EOFError:
            return
        except Exception as error:
            answer = report_of(error), None
        parent.send(answer)


def _end_with_parent() -> None:
    """Kill this process when the parent ends, even while it measures."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
