"""Separate processes that measure time and memory of networks, or keep other CPU cores busy.

If the parent process measured, it would hold memory of a CUDA context and of networks during the
whole run, and the workers could not use this memory.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, ParamSpec, TypeVar

import torch

from ppll_cli.errors import WorkerFailedError
from ppll_cli.job.numerics import Numerics
from ppll_cli.leaves import forkserver
from ppll_cli.leaves.printable import error_text
from ppll_cli.predict.chain import Chain, Work
from ppll_cli.predict.timing import DISTURBED

LIMIT_S = 1800.0
"""Largest number of seconds for a request, which may include compiling."""

START_S = 300.0
"""Seconds that a process of `neighbours` may take until it has made its first training step."""

Found = TypeVar("Found")
P = ParamSpec("P")


def _report_of(error: Exception) -> dict[str, Any]:
    return {"error": error_text(error), "traceback": traceback.format_exc()}


def _answer_of(child: forkserver.Child, limit_s: float, name: str, device: str) -> Any:
    report, found = {"error": f"no answer within {limit_s:.0f} s"}, None
    try:
        if wait([child.link], limit_s):
            report, found = child.link.recv()  # the report is empty without a failure
    except (EOFError, OSError):
        child.process.join(forkserver.LEAVE_S)
        report = {"error": f"the process is gone ({forkserver.how_ended(child.process.exitcode)})"}
    if report:
        raise WorkerFailedError({"name": name, "device": device, **report})
    return found


class Meter:
    """Measures in a separate process, which the first request starts.

    Attributes:
        disturbed: Whether other programs disturbed the latest measurement (see `predict.timing`).
    """

    disturbed = False

    def __init__(self, device: str, numerics: Numerics) -> None:
        self._device, self._numerics = device, numerics
        self._child: forkserver.Child | None = None

    def ask(
        self, threads: int, measure: Callable[P, Found], *args: P.args, **kwargs: P.kwargs
    ) -> Found:
        """Call `measure` in the separate process, with `threads` CPU threads; return its result.

        Raises:
            WorkerFailedError: Measuring failed or took longer than `LIMIT_S`, or the process died.
            RunFailedError: The fork server does not start the process.
            ConfigError: The fork server cannot be started.
        """
        child = self._child = self._child or forkserver.Child(serve, self._device, self._numerics)
        with suppress(OSError):  # if the process has died, there is no answer either
            child.link.send((threads, partial(measure, *args, **kwargs)))
        try:
            answer: Found
            answer, self.disturbed = _answer_of(child, LIMIT_S, "measuring", self._device)
        except WorkerFailedError:
            self.close()
            raise
        return answer

    def close(self) -> None:
        """End the separate process. The next request starts a new one."""
        if self._child is not None:
            self._child.close()
        self._child = None


def serve(device: str, numerics: Numerics, parent: Connection) -> None:
    """Answer the requests of a `Meter` in its separate process, until the pipe to it is closed.

    A request is a pair: a number of CPU threads, and a function without arguments.
    """
    # During a measurement, this loop does not read the pipe. So another thread has to notice that
    # the parent has ended.
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
            DISTURBED.clear()
            answer: tuple[dict[str, str], Any] = {}, (measure(), bool(DISTURBED))
        except EOFError:
            return
        except Exception as error:
            answer = _report_of(error), None
        parent.send(answer)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def neighbours(work: Work, count: int) -> Iterator[None]:
    """Run `count` processes that each train the units of `work`, until the `with` block ends.

    They imitate the other stages of a run: cores share caches and memory, so a unit takes longer
    while other stages compute.

    Raises:
        WorkerFailedError: A process failed, or made no training step within `START_S` seconds.
        RunFailedError: The fork server does not start a process.
        ConfigError: The fork server cannot be started.
    """
    name = "a process that computes beside the measured one"
    with ExitStack() as held:
        children = []
        for _ in range(count):
            children.append(forkserver.Child(_train, work))
            held.callback(children[-1].close)
        for child in children:
            _answer_of(child, START_S, name, "cpu")
        yield
        for child in children:
            if child.link.poll():  # a neighbour sends a second message only if it failed
                _answer_of(child, 0.0, name, "cpu")


def _train(work: Work, parent: Connection) -> None:
    torch.set_num_threads(work.setup.threads)
    try:
        work.setup.numerics.apply(torch.device(work.setup.device))
        chain = Chain(work)
        chain.step()
        parent.send(({}, None))
        while not parent.poll():
            chain.step()
    except Exception as error:
        parent.send((_report_of(error), None))
