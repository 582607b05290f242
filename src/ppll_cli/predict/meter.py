"""A separate process that measures time and memory of networks.

If the parent process measured, it would hold the memory of networks and of a CUDA context during
the whole run, and the workers could not use it.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, ParamSpec, TypeVar

import torch

from ppll_cli.errors import WorkerFailedError
from ppll_cli.job.numerics import Numerics
from ppll_cli.leaves import forkserver

LIMIT_S = 1800.0
"""Largest number of seconds for a request, which may include compiling."""

LEAVE_S = 5.0
"""Seconds to wait for the end of a killed process."""

Found = TypeVar("Found")
P = ParamSpec("P")


class Meter:
    """Starts the measuring process when it is first needed, and ends it."""

    def __init__(self, device: str, numerics: Numerics) -> None:
        self._device, self._numerics = device, numerics
        self._process: ForkServerProcess | None = None
        self._link: Connection | None = None

    def ask(
        self, threads: int, measure: Callable[P, Found], *args: P.args, **kwargs: P.kwargs
    ) -> Found:
        """Call `measure` in the measuring process with `threads` CPU threads; return its result.

        Raises:
            WorkerFailedError: Measuring failed or took longer than `LIMIT_S`, or the process died.
            RunFailedError: The process cannot be started.
        """
        link = self._link or self._start()
        report: dict[str, Any]
        try:
            link.send((threads, partial(measure, *args, **kwargs)))
            if wait([link], LIMIT_S):
                report, found = link.recv()
            else:
                report, found = {"error": f"nothing was measured in {LIMIT_S:.0f} s"}, None
        except (EOFError, OSError):
            assert self._process is not None
            self._process.join(LEAVE_S)
            fate = forkserver.how_ended(self._process.exitcode)
            report, found = {"error": f"the process is gone ({fate})"}, None
        if report:
            self.close()
            raise WorkerFailedError({"name": "measuring", "device": self._device, **report})
        answer: Found = found
        return answer

    def close(self) -> None:
        """End the process, which frees its memory on the device."""
        if self._process is not None:
            self._process.kill()
            self._process.join(LEAVE_S)
        if self._link is not None:
            self._link.close()
        self._process = self._link = None

    def _start(self) -> Connection:
        forkserver.start()
        context = forkserver.context()
        self._link, there = context.Pipe()
        process = context.Process(
            target=serve, args=(there, self._device, self._numerics), name="ppll-meter", daemon=True
        )
        forkserver.begin(process)
        self._process = process
        there.close()
        return self._link


def serve(parent: Connection, device: str, numerics: Numerics) -> None:
    """Answer requests in the measuring process until the parent closes its end of the pipe.

    A request is a number of threads and a function without arguments. An answer is a pair: the
    report of a failure, empty if there was none, and the result.
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
            said = f"{type(error).__name__}: {error}"
            answer = {"error": said, "traceback": traceback.format_exc()}, None
        parent.send(answer)


def _end_with_parent() -> None:
    """Kill this process when the parent ends, even while it measures."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
