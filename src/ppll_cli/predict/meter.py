"""A process that measures.

The parent of the workers lives as long as they do. If it measured by itself, the workers would lack
the memory that measuring takes, and on CUDA that of a context, for the whole run.
"""

import os
import signal
import threading
import traceback
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, Protocol, TypeVar

import torch

from ppll_cli.errors import WorkerFailedError
from ppll_cli.job.numerics import Numerics
from ppll_cli.leaves import forkserver

LIMIT_S = 1800.0
"""How long an answer may take; networks may have to be compiled for it."""

LEAVE_S = 5.0

Found = TypeVar("Found", covariant=True)


class Request(Protocol[Found]):
    """What the process is asked for, as plain data."""

    @property
    def threads(self) -> int:
        """CPU threads to measure with."""
        ...

    def measure(self) -> Found:
        """Measure it, in the process."""
        ...


class Meter:
    """The parent's end: starts the process when it is first asked, and ends it.

    Args:
        device: The device that is measured.
        numerics: How workers compute.
    """

    def __init__(self, device: str, numerics: Numerics) -> None:
        self._device, self._numerics = device, numerics
        self._process: ForkServerProcess | None = None
        self._link: Connection | None = None

    def ask(self, request: Request[Found]) -> Found:
        """Have something measured.

        Raises:
            WorkerFailedError: Measuring failed, or the process is gone or says nothing.
            RunFailedError: The process cannot be started.
        """
        link = self._link or self._start()
        report: dict[str, Any]
        try:
            link.send(request)
            if wait([link], LIMIT_S):
                report, found = link.recv()
            else:
                report, found = {"error": f"nothing was measured in {LIMIT_S:.0f} s"}, None
        except (EOFError, OSError):
            report, found = {"error": f"the process is gone ({self._fate()})"}, None
        if report:
            self.close()
            raise WorkerFailedError({"name": "measuring", "device": self._device, **report})
        answer: Found = found
        return answer

    def close(self) -> None:
        """End the process; what it was given on a device is free after that."""
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
            target=serve,
            args=(there, self._device, self._numerics),
            name="ppll-meter",
            daemon=True,
        )
        forkserver.begin(process)
        self._process = process
        there.close()
        return self._link

    def _fate(self) -> str:
        assert self._process is not None
        self._process.join(LEAVE_S)
        return forkserver.fate(self._process.exitcode)


def serve(parent: Connection, device: str, numerics: Numerics) -> None:
    """What the process does: answer until the other end of the pipe is closed.

    An answer is a report of what failed, empty if nothing did, and what was measured.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    ready = False
    while True:
        try:
            request: Request[Any] = parent.recv()
            if not ready:
                _set_up(torch.device(device), numerics)
                ready = True
            torch.set_num_threads(request.threads)
            answer: tuple[dict[str, str], Any] = {}, request.measure()
        except EOFError:
            return
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            answer = {"error": said, "traceback": traceback.format_exc()}, None
        parent.send(answer)


def _end_with_parent() -> None:
    """Wait for the end of the parent, which may be killed, and leave in the midst of anything."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _set_up(device: torch.device, numerics: Numerics) -> None:
    """Prepare this process as a worker prepares its own."""
    torch.manual_seed(0)
    numerics.apply(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
