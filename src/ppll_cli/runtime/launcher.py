"""The launcher: starts the workers, watches them, and gathers what they report."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import FrameType
from typing import Any

from ppll_cli.errors import Interrupted, WorkerFailedError
from ppll_cli.runtime import forkserver, process
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.worker import Links, StopFlag
from ppll_cli.transport.channel import Receiver, Sender, Transport
from ppll_cli.transport.memory import remove_left

log = logging.getLogger(__name__)

LEAVE_S = 5.0
"""How long a worker may take to leave once it is told to."""

SETTLE_S = 0.3
"""How long to wait, after a failure, for the process that may be its cause to be gone."""

Report = dict[str, Any]


@dataclass
class _Watched:
    """A worker, seen from the parent."""

    stage: int
    process: ForkServerProcess
    reports: Connection
    done: Report | None = None
    failed: bool = False


@dataclass(frozen=True)
class Ending:
    """How the workers ended.

    Attributes:
        reports: The last report of each worker, in the order of the stages.
        signal: The signal that asked for a stop, if one did.
    """

    reports: list[Report]
    signal: int | None


def launch(job: Job, transport: Transport, on_report: Callable[[Report], None]) -> Ending:
    """Run a job to its end.

    Args:
        job: What to run.
        transport: Makes the channels between the workers.
        on_report: Told each report of a worker as it comes, except the last.

    Raises:
        WorkerFailedError: A worker failed; all have been stopped.
        Interrupted: A second signal came; all have been stopped.
    """
    forkserver.start()
    context = forkserver.context()
    stop = context.RawValue("b", 0)
    senders, receivers = _channels(job, transport)
    workers: list[_Watched] = []
    with _stop_on_signal(stop), _none_left(workers):
        for stage in range(job.stages):
            here, there = context.Pipe()
            links = Links(senders[stage], receivers[stage], there, stop)
            started = context.Process(
                target=process.main, args=(job, stage, links), name=f"ppll-stage-{stage}"
            )
            started.start()
            there.close()
            workers.append(_Watched(stage, started, here))
        while not all(watched.done for watched in workers):
            _watch(job, workers, on_report)
        for watched in workers:
            watched.reports.send_bytes(b"leave")
        for watched in workers:
            watched.process.join(LEAVE_S)
        return Ending([w.done for w in workers if w.done], stop.value or None)


def _channels(
    job: Job, transport: Transport
) -> tuple[list[dict[int, Sender]], list[dict[int, Receiver]]]:
    """For each stage, its ends of the channels to and from its neighbours."""
    senders: list[dict[int, Sender]] = [{} for _ in range(job.stages)]
    receivers: list[dict[int, Receiver]] = [{} for _ in range(job.stages)]
    for (source, target), room in job.channels().items():
        senders[source][target], receivers[target][source] = transport.channel(
            *room, job.devices[source], job.devices[target]
        )
    return senders, receivers


def _watch(job: Job, workers: list[_Watched], on_report: Callable[[Report], None]) -> None:
    """Wait until something happens, and deal with it."""
    ends: list[Any] = [watched.reports for watched in workers if watched.done is None]
    sentinels = [watched.process.sentinel for watched in workers]
    wait([*ends, *sentinels], timeout=1.0)
    failures = _failures(job, workers, on_report)
    if failures:
        # A worker that was killed made no report, but its neighbours may have stumbled over it.
        wait([watched.process.sentinel for watched in workers], timeout=SETTLE_S)
        failures += _failures(job, workers, on_report)
        root = min(failures, key=lambda failure: ("traceback" in failure, failure["time"]))
        raise WorkerFailedError(root)


def _failures(
    job: Job, workers: list[_Watched], on_report: Callable[[Report], None]
) -> list[Report]:
    """Deal with all reports that are there, and return those of failures."""
    failures: list[Report] = []
    ready = wait([watched.process.sentinel for watched in workers], timeout=0)
    for watched in workers:
        died = watched.process.sentinel in ready
        for report in _read(watched.reports, wait_for_end=died):
            if report["kind"] == "done":
                watched.done = report
            elif report["kind"] == "failed":
                failures.append(report)
                watched.failed = True
            elif report["kind"] == "log":
                log.log(report["level"], "stage %d: %s", watched.stage, report["message"])
            else:
                on_report(report)
        if died and not watched.failed:
            failures.append(_death(job, watched))
            watched.failed = True
    return failures


def _read(reports: Connection, wait_for_end: bool) -> Iterator[Report]:
    """All reports that are there; of a dead worker, up to the end of its pipe."""
    try:
        while reports.poll(LEAVE_S if wait_for_end else 0):
            yield reports.recv()
    except (EOFError, ConnectionResetError):
        return


def _death(job: Job, watched: _Watched) -> Report:
    """The report of a worker that could not make one."""
    watched.process.join(LEAVE_S)
    code = watched.process.exitcode
    how = f"exit status {code}"
    if code is not None and code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    return {
        "kind": "failed",
        "stage": watched.stage,
        "time": time.time(),
        "device": job.devices[watched.stage],
        "error": f"the worker process is gone ({how})",
    }


@contextmanager
def _none_left(workers: list[_Watched]) -> Iterator[None]:
    """However the body ends, no worker outlives it."""
    try:
        yield
    finally:
        for watched in workers:
            watched.process.kill()  # they heed no other signal, and have nothing to put in order
        for watched in workers:
            watched.process.join(LEAVE_S)
            watched.reports.close()
            if watched.process.pid is not None:
                remove_left(watched.process.pid)


@contextmanager
def _stop_on_signal(stop: StopFlag) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks for a checkpoint and an end, the second ends at once.

    Signals come to a program's main thread; in another one there is nothing to handle.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        if stop.value:
            raise Interrupted(number)
        stop.value = number
        log.warning("stopping after the batch in hand; once more to stop at once")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
