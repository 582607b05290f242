"""The launcher: it starts the workers, watches them, and gathers their reports."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from ppll_cli.errors import Interrupted, WorkerFailedError
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import ChannelEnds, StopFlag
from ppll_cli.job.pulse import Pulse, Watchdog
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
        signal: None if the run is complete, else the signal that ended it early. The time limit
            counts as SIGTERM.
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
    """Start the workers of a job on this machine, and watch them until the job ends.

    In a run over several machines, only machine 0 calls `on_report`, with the reports of all
    machines.

    Args:
        job: The job to run.
        transport: Makes the channels inside this machine.
        on_report: Called with the workers' reports, for example of metrics and checkpoints.
        on_start: Called once, after the start of the workers, with each worker's `Pulse`, in the
            order of `Job.seats`. On machine 0, these are the workers of all machines.
        fleet: The connection to the other machines of the run; None if there are none.
        until_s: Time of `time.monotonic` at which the workers are stopped, as by a SIGTERM.

    Raises:
        ConfigError: The fork server cannot be started.
        WorkerFailedError: A worker failed; all workers have been stopped.
        RunFailedError: A helper process of multiprocessing has ended or is suspended, or another
            machine failed; all workers have been stopped.
        Interrupted: A second signal to stop came; all workers have been stopped.
    """
    forkserver.start()
    stop: StopFlag = forkserver.context().RawValue("b", 0)
    launcher = _Launcher(job, stop, on_report, fleet)
    _stop_in_time(stop, until_s)
    with _stop_on_signal(stop) as signals, ExitStack() as held, signals.before_clean_up():
        store, interface = _meeting(job, fleet, held)
        if job.restartable:  # the folder is removed after the workers have ended
            folder = held.enter_context(shared_scratch())
            launcher.restarts = Restarts(job, folder, launcher.tell)
        held.callback(launcher.kill)
        # On an error, this tells the other machines before `kill` ends the workers here.
        held.enter_context(launcher.telling())
        ends = wire(job, transport, store, interface, None if fleet is None else fleet.rank)
        for seat in job.seats:
            if fleet is None or job.home(seat) == fleet.rank:
                launcher.begin(seat, ends[seat])
        seen = launcher.seen()
        on_start([seen[seat].pulse for seat in job.seats if seat in seen])
        watchdog = Watchdog([watched.pulse for watched in launcher.workers])
        while not launcher.ended():
            _stop_in_time(stop, until_s)
            launcher.watch(watchdog)
        ending = launcher.ending()
        launcher.let_leave()
        return ending


class _Launcher:
    def __init__(
        self, job: Job, stop: StopFlag, on_report: Callable[[Report], None], fleet: Fleet | None
    ) -> None:
        self._job, self._stop, self._on_report, self._fleet = job, stop, on_report, fleet
        self._others: Leader | Follower | None = None
        if fleet is not None:
            self._others = (Leader if fleet.first else Follower)(fleet, job, stop)
        self.workers: list[Watched] = []
        self.restarts: Restarts | None = None

    def begin(self, seat: Seat, ends: ChannelEnds) -> None:
        pulse: Pulse = forkserver.context().RawValue(Pulse)
        pulse.start_again()
        watched = Watched(seat, self._job.name(seat), pulse, ends=ends, stop=self._stop)
        watched.begin(self._job, None if self.restarts is None else self.restarts.recovery(seat))
        self.workers.append(watched)

    def seen(self) -> dict[Seat, Seen]:
        own: dict[Seat, Seen] = {watched.seat: watched for watched in self.workers}
        return own if self._others is None else own | self._others.away

    def ended(self) -> bool:
        if isinstance(self._others, Follower):
            return self._others.ended is not None
        return all(each.done for each in self.seen().values())

    def ending(self) -> Ending:
        if isinstance(self._others, Follower):
            return Ending([], self._others.signal)
        seen = self.seen()
        reports = [done for seat in self._job.seats if (done := seen[seat].done) is not None]
        early = reports[-1]["step"] < self._job.course.steps
        ending = Ending(reports, (self._stop.value or None) if early else None)
        if self._others is not None:
            self._others.end(ending.signal)
        return ending

    def let_leave(self) -> None:
        for watched in self.workers:
            with suppress(OSError):  # the worker was killed after it was done
                watched.reports.send_bytes(b"leave")
        for watched in self.workers:
            watched.process.join(LEAVE_S)

    def kill(self) -> None:
        for watched in self.workers:
            watched.kill()  # workers ignore other signals, and have nothing to clean up
        for watched in self.workers:
            watched.clean_up()
        # This object and `restarts` refer to each other, so the garbage collector frees them late.
        # Until then, `self.workers` would keep the workers' shared memory.
        self.workers.clear()

    @contextmanager
    def telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reported = isinstance(self._others, Follower) and isinstance(error, WorkerFailedError)
            if self._fleet is not None and not reported:
                self._fleet.fail(error)
            raise
        finally:
            if self._fleet is not None:
                self._fleet.close_parcels()

    def tell(self, report: Report) -> None:
        if self._fleet is not None:
            report = {**report, "machine": self._fleet.name(self._fleet.rank)}
        if self._others is None or not self._others.pass_on(report):
            self._on_report(report)

    def handle(self, seen: Seen, report: Report) -> None:
        if self.restarts is not None and self.restarts.repeats(report):
            return
        if report["kind"] == "done":
            seen.done = report
        if self._others is not None and self._others.pass_on(report):
            return
        if report["kind"] == "log":
            log.log(report["level"], "stage %s: %s", seen.name, report["message"])
        elif report["kind"] != "done":
            self._on_report(report)

    def watch(self, watchdog: Watchdog) -> None:
        others, workers = self._others, self.workers
        ends: list[Any] = [watched.reports for watched in workers if watched.done is None]
        sentinels = [watched.process.sentinel for watched in workers if not watched.failed]
        wait([*ends, *sentinels, *forkserver.helpers()], timeout=1.0 if others is None else 0.2)
        failures = self._failures()
        for worker, error in watchdog.late():
            failures.append(workers[worker].failure(self._job, error))
        if self.restarts is not None:
            failures = self.restarts.restart(failures, workers, self.handle)
        if others is not None:
            failures += others.handle_messages(self.handle)
        if isinstance(others, Follower):
            others.report_progress(workers)
        if failures:
            # A killed worker sends no report. Its neighbours may report failures before this
            # process notices that the worker has ended. So wait a moment for ends of workers.
            wait([watched.process.sentinel for watched in workers], timeout=SETTLE_S)
            failures += self._failures()
            root = cause(failures) if others is None else others.verdict(failures, self.handle)
            seat, seen = (root["stage"], root["replica"]), self.seen()
            meanwhile = {each.name: str(each.pulse) for each in seen.values() if each.seat != seat}
            root |= {"replicas": self._job.replicas, "others": meanwhile}
            raise WorkerFailedError(root)

    def _failures(self) -> list[Report]:
        failures: list[Report] = []
        ready = wait([watched.process.sentinel for watched in self.workers], timeout=0)
        # Without the fork server, multiprocessing regards all workers as dead.
        forgotten = any(watched.process.exitcode == FORGOTTEN for watched in self.workers)
        if name := forkserver.ended_helper(SETTLE_S if forgotten else 0):
            raise forkserver.lost_helper(name)
        for watched in self.workers:
            died = watched.process.sentinel in ready
            for report in watched.read(LEAVE_S if died else 0):
                if report["kind"] == "failed":
                    failures.append(report)
                    watched.failed = True
                else:
                    self.handle(watched, report)
            if died and not watched.failed:
                failures.append(watched.death(self._job))
                watched.failed = True
        return failures


def _stop_in_time(stop: StopFlag, until_s: float | None) -> None:
    if until_s is not None and time.monotonic() >= until_s and not stop.value:
        stop.value = signal.SIGTERM
        log.warning("max_minutes have passed: stopping after the current batch")


class _Signals:
    def __init__(self, stop: StopFlag) -> None:
        self._stop, self._cleaning = stop, False
        self.late: int | None = None

    @contextmanager
    def before_clean_up(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._cleaning = True

    def handle(self, number: int, _: FrameType | None) -> None:
        if self._cleaning:
            self.late = number  # an exception here would skip the rest of the clean-up
        elif self._stop.value:
            self._cleaning = True  # a third signal must not interrupt the clean-up
            raise Interrupted(number)
        else:
            self._stop.value = number
            told = (
                "stopping after the current batch; send the signal (Ctrl-C) again to stop at once"
            )
            log.warning(told)


@contextmanager
def _stop_on_signal(stop: StopFlag) -> Iterator[_Signals]:
    signals = _Signals(stop)
    # Python handles signals only in the main thread.
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    previous = {number: signal.signal(number, signals.handle) for number in ending_signals()}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if signals.late is not None:
        raise Interrupted(signals.late)


def _meeting(job: Job, fleet: Fleet | None, held: ExitStack) -> tuple[str, str]:
    if fleet is not None:
        return fleet.store, fleet.interface
    if not needs_groups(job):
        return "", ""
    # Without this name, gloo would use an address to which the host name resolves. It may be any
    # address, so name the loopback interface.
    interface = "lo0" if sys.platform == "darwin" else "lo"
    return f"file://{held.enter_context(scratch())}/store", interface
