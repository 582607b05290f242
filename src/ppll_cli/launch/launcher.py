"""The launcher: it starts the workers, watches them, and gathers their reports."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from ppll_cli.errors import Interrupted, PpllError, WorkerFailedError
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import ChannelEnds, Recovery, StopFlag
from ppll_cli.job.pulse import Pulse, Watchdog
from ppll_cli.job.spelling import spelled
from ppll_cli.launch.machines.fleet import Fleet
from ppll_cli.launch.machines.others import Follower, Leader, Report, Seen, cause
from ppll_cli.launch.restarts import Restarts
from ppll_cli.launch.watched import LEAVE_S, Watched
from ppll_cli.launch.wiring import needs_groups, wire
from ppll_cli.leaves import forkserver
from ppll_cli.leaves.programs import ending_signals
from ppll_cli.leaves.scratch import scratch, shared_scratch
from ppll_cli.transport.channel import Transport

log = logging.getLogger(__name__)

SETTLE_S = 0.3
"""Seconds that the launcher waits after a failure: another worker may have died and caused it."""

FORGOTTEN = 255
"""Exit status that multiprocessing reports for every worker after the fork server has ended."""


@dataclass(frozen=True)
class Ending:
    """How the workers ended.

    Attributes:
        reports: The last report of each worker, in the order of `Job.seats`. Only machine 0 has
            them; on other machines the list is empty.
        signal: The signal that asked the workers to stop (SIGTERM at the time limit), or None.
    """

    reports: list[Report]
    signal: int | None


def launch(
    job: Job,
    transport: Transport,
    on_report: Callable[[Report], None],
    on_start: Callable[[Sequence[Pulse]], None] = lambda _: None,
    fleet: Fleet | None = None,
    until_s: float | None = None,
) -> Ending:
    """Start the workers of a job, and watch them until the job ends.

    With a `fleet` (a run over several machines), start only the workers of this machine.

    `on_report` is called with each report of a worker, except messages for the log, failures and
    the last report. On machine 0, `on_report` gets the reports of all machines. After the start of
    the workers, `on_start` is called with their pulses, from which their progress can be read. At
    the time `until_s`, on the clock of `time.monotonic`, the launcher stops the workers as a
    SIGTERM would.

    Raises:
        WorkerFailedError: A worker failed; all workers have been stopped.
        RunFailedError: A helper process of multiprocessing has ended or is stopped, or another
            machine failed; all workers have been stopped.
        Interrupted: A second signal to stop came; all workers have been stopped.
    """
    forkserver.start()
    stop: StopFlag = forkserver.context().RawValue("b", 0)
    others: Leader | Follower | None = None
    if fleet is not None:
        others = Leader(fleet, job, stop) if fleet.first else Follower(fleet, job, stop)
    workers: list[Watched] = []

    def tell(report: Report) -> None:
        named = report if fleet is None else {**report, "machine": fleet.name(fleet.rank)}
        if others is None or not others.pass_on(named):
            on_report(named)

    _stop_in_time(stop, until_s)
    with (
        _stop_on_signal(stop),
        _meeting(job, fleet) as meeting,
        _restarting(job, tell) as restarts,  # removes its folder after the workers have ended
        _kill_at_end(workers),
        _telling(others, fleet),  # tells other machines before the workers here are killed
    ):
        ends = wire(job, transport, *meeting, None if fleet is None else fleet.rank)
        for seat in job.seats:
            if fleet is None or job.home(seat) == fleet.rank:
                recovery = None if restarts is None else restarts.recovery(seat)
                workers.append(_begin(job, seat, ends[seat], stop, recovery))
        seen: dict[Seat, Seen] = {watched.seat: watched for watched in workers}
        seen |= {} if others is None else others.away
        on_start([seen[seat].pulse for seat in job.seats if seat in seen])
        watchdog = Watchdog([watched.pulse for watched in workers])
        while not _ended(others, seen.values()):
            _stop_in_time(stop, until_s)
            _watch(job, workers, watchdog, on_report, others, restarts)
        ending = _ending(job, others, seen, stop)
        _let_leave(workers)
        return ending


def _begin(
    job: Job, seat: Seat, ends: ChannelEnds, stop: StopFlag, recovery: Recovery | None
) -> Watched:
    pulse: Pulse = forkserver.context().RawValue(Pulse)
    pulse.start_again()
    watched = Watched(seat, job.name(seat), pulse, ends=ends, stop=stop)
    watched.begin(job, recovery)
    return watched


def _ending(
    job: Job, others: Leader | Follower | None, seen: Mapping[Seat, Seen], stop: StopFlag
) -> Ending:
    """Return how the workers ended. On machine 0, also tell the other machines."""
    if isinstance(others, Follower):
        return Ending([], others.signal)
    reports = [done for seat in job.seats if (done := seen[seat].done) is not None]
    ending = Ending(reports, stop.value or None)
    if others is not None:
        early = reports[-1]["step"] < job.course.steps
        others.end(signal=ending.signal if early else None)
    return ending


def _let_leave(workers: Sequence[Watched]) -> None:
    """Allow the workers to exit, and wait until they have exited."""
    for watched in workers:
        with suppress(OSError):  # the worker was killed after it was done
            watched.reports.send_bytes(b"leave")
    for watched in workers:
        watched.process.join(LEAVE_S)


def _stop_in_time(stop: StopFlag, until_s: float | None) -> None:
    if until_s is not None and time.monotonic() >= until_s and not stop.value:
        stop.value = signal.SIGTERM
        log.warning("max_minutes have passed: stopping after the current batch")


@contextmanager
def _stop_on_signal(stop: StopFlag) -> Iterator[None]:
    """At the first signal, stop the workers after a checkpoint; at the second, raise `Interrupted`.

    Python handles signals only in the main thread; in another thread this function does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        if stop.value:
            raise Interrupted(number)
        stop.value = number
        told = "stopping after the current batch; send the signal (Ctrl-C) again to stop at once"
        log.warning(told)

    previous = {number: signal.signal(number, handle) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ended(others: Leader | Follower | None, seen: Iterable[Seen]) -> bool:
    if isinstance(others, Follower):
        return others.ended is not None
    return all(each.done for each in seen)


@contextmanager
def _telling(others: Leader | Follower | None, fleet: Fleet | None) -> Iterator[None]:
    """If the `with` block fails, tell the other machines. In any case, end transfers of files."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, PpllError) else f"{type(error).__name__}: "
        how: dict[str, Any] = {"problem": f"{kind}{error}"}
        if isinstance(error, WorkerFailedError):
            how = {"report": spelled(error.report)}
        elif isinstance(error, Interrupted):
            how = {"signal": error.signal, "at_once": True}
        if others is not None:
            others.end(**how)
        raise
    finally:
        if fleet is not None:
            fleet.close_parcels()


@contextmanager
def _meeting(job: Job, fleet: Fleet | None) -> Iterator[tuple[str, str]]:
    """Yield the address of the store that process groups use, and the name of a network interface.

    The workers' process groups use this interface. Both texts are empty if no worker needs a group.
    """
    if fleet is not None:
        yield fleet.store, fleet.interface
        return
    if not needs_groups(job):
        yield "", ""
        return
    # The host name may resolve to any address, so use loopback.
    interface = "lo0" if sys.platform == "darwin" else "lo"
    with scratch() as folder:
        yield f"file://{folder}/store", interface


def _watch(
    job: Job,
    workers: list[Watched],
    watchdog: Watchdog,
    on_report: Callable[[Report], None],
    others: Leader | Follower | None,
    restarts: Restarts | None,
) -> None:
    """Wait at most a second for a report or the end of a worker, and handle what has happened."""

    def handle(seen: Seen, report: Report) -> None:
        if restarts is not None and restarts.repeats(report):
            return
        if report["kind"] == "done":
            seen.done = report
        if others is not None and others.pass_on(report):
            return
        if report["kind"] == "log":
            log.log(report["level"], "stage %s: %s", seen.name, report["message"])
        elif report["kind"] != "done":
            on_report(report)

    ends: list[Any] = [watched.reports for watched in workers if watched.done is None]
    sentinels = [watched.process.sentinel for watched in workers if not watched.failed]
    wait([*ends, *sentinels, *forkserver.helpers()], timeout=1.0 if others is None else 0.2)
    failures = _failures(job, workers, handle)
    for worker, error in watchdog.late():
        failures.append(workers[worker].failure(job, error))
    if restarts is not None:
        failures = restarts.restart(failures, workers, handle)
    seen: list[Seen] = [*workers]
    if others is not None:
        failures += others.handle_messages(handle)
        seen += others.away.values()
    if isinstance(others, Follower):
        others.report_progress(workers)
    if failures:
        # A killed worker sends no report, so the first reports may be those of its neighbours.
        wait([watched.process.sentinel for watched in workers], timeout=SETTLE_S)
        failures += _failures(job, workers, handle)
        root = cause(failures) if others is None else others.verdict(failures, handle)
        seat = root["stage"], root["replica"]
        meanwhile = {each.name: str(each.pulse) for each in seen if each.seat != seat}
        raise WorkerFailedError({**root, "replicas": job.replicas, "others": meanwhile})


def _failures(
    job: Job, workers: list[Watched], handle: Callable[[Seen, Report], None]
) -> list[Report]:
    """Handle the workers' new reports, and return the reports of new failures."""
    failures: list[Report] = []
    ready = wait([watched.process.sentinel for watched in workers], timeout=0)
    # Without the fork server, multiprocessing regards all workers as dead.
    forgotten = any(watched.process.exitcode == FORGOTTEN for watched in workers)
    if name := forkserver.ended_helper(SETTLE_S if forgotten else 0):
        raise forkserver.lost_helper(name)
    for watched in workers:
        died = watched.process.sentinel in ready
        for report in watched.read(LEAVE_S if died else 0):
            if report["kind"] == "failed":
                failures.append(report)
                watched.failed = True
            else:
                handle(watched, report)
        if died and not watched.failed:
            failures.append(watched.death(job))
            watched.failed = True
    return failures


@contextmanager
def _restarting(job: Job, tell: Callable[[Report], None]) -> Iterator[Restarts | None]:
    if not job.restartable:
        yield None
        return
    with shared_scratch() as folder:
        yield Restarts(job, folder, tell)


@contextmanager
def _kill_at_end(workers: list[Watched]) -> Iterator[None]:
    try:
        yield
    finally:
        for watched in workers:
            watched.kill()  # workers ignore other signals, and have nothing to clean up
        for watched in workers:
            watched.clean_up()
