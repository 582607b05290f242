"""Lets launchers of several machines work together while workers run.

Machine 0's launcher is the leader: it receives the reports of all workers, and decides when workers
exit or stop. The other launchers are followers: each watches the workers of its machine, and sends
their reports to the leader.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from ppll_cli.errors import RunFailedError
from ppll_cli.job import checkpoint
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import StopFlag
from ppll_cli.job.pulse import Pulse
from ppll_cli.job.spelling import read, spelled
from ppll_cli.launch.machines.fleet import Fleet, Message, read_error

Report = dict[str, Any]

HEARING_S = 2.0
"""Seconds that machine 0 waits after an exception: another machine's failure may have caused it."""

VERDICT_S = 10.0
"""Seconds that a follower waits until the leader names the cause of a failure."""


@dataclass
class Seen:
    """What a launcher knows about a worker.

    Attributes:
        name: The result of `Job.name`, for messages.
        pulse: The worker's latest signs of life and progress.
        done: The report with which the worker ended; None before.
    """

    seat: Seat
    name: str
    pulse: Pulse
    done: Report | None = None

    def failure(self, job: Job, error: str) -> Report:
        """Return a report that says that this worker failed with the text `error`.

        A launcher makes it if the worker itself cannot report: it died, hangs, or is unreachable.
        """
        doing, item = self.pulse.texts()
        return {
            "kind": "failed",
            "stage": self.seat.stage,
            "replica": self.seat.replica,
            "time": time.time(),
            "device": job.device(self.seat),
            "phase": doing or "starting",
            "batch": item or None,
            "error": error,
        }


class Leader:
    """Communicates with the launchers of other machines, for the launcher of machine 0.

    `stop` is the flag that stops this machine's workers. The attribute `away` has the workers of
    other machines.
    """

    def __init__(self, fleet: Fleet, job: Job, stop: StopFlag) -> None:
        self._fleet, self._job, self._stop = fleet, job, stop
        seats = [seat for seat in job.seats if job.home(seat) != fleet.rank]
        self.away = {seat: Seen(seat, job.name(seat), Pulse()) for seat in seats}
        self._waiting: dict[Seat, deque[tuple[Report, Event | None]]] = defaultdict(deque)

    def pass_on(self, report: Report) -> bool:
        """Return False: machine 0's launcher handles the reports of its own workers.

        `Follower.pass_on` sends the report to machine 0, and returns True.
        """
        return False

    def handle_messages(self, handle: Callable[[Seen, Report], None]) -> Iterator[Report]:
        """Handle the messages of other machines, and yield a report of each failure.

        `handle` is called with all reports that are no failures. A report about a saved file, and
        most later reports of the same worker, wait until the file has arrived.

        Raises:
            RunFailedError: A launcher on another machine, or a transfer of files, failed.
        """
        for message in iter(self._fleet.hear, None):
            where = self._fleet.name(message["machine"])
            match message["kind"]:
                case "report":
                    # Replace the time, because the clock of another machine shows another time.
                    report = {**read(message["report"]), "at_s": time.perf_counter()}
                    seen = self.away[Seat(report["stage"], report["replica"])]
                    if report["kind"] == "failed":
                        yield {**report, "machine": where}
                    elif report["kind"] in ("log", "restart", "restarted"):
                        handle(seen, report)  # even if earlier reports wait for files
                    else:
                        there = self._arrival(message["machine"], report)
                        self._waiting[seen.seat].append((report, there))
                        self._handle_arrived(seen, handle)
                case "looks":
                    for number, look in message["looks"]:
                        self.away[self._job.seats[number]].pulse.show(bytes.fromhex(look))
                case "signal":
                    self._stop.value = self._stop.value or message["signal"]
                case "failed":
                    error = read_error(message)
                    if isinstance(error, RunFailedError):
                        raise error
                    raise RunFailedError(f"{where}: {error}")
        for seen in self.away.values():
            self._handle_arrived(seen, handle)
        if silent := self._fleet.silent():
            yield self._gone(*silent)

    def verdict(self, failures: list[Report], handle: Callable[[Seen, Report], None]) -> Report:
        """Wait for failures on other machines, and return the most likely cause of all failures.

        Args:
            failures: The failures known so far; later ones are added.
            handle: See `handle_messages`.

        Raises:
            RunFailedError: A launcher or a transfer of files failed, and all `failures` are only
                lost connections.
        """
        until_s = time.monotonic() + HEARING_S
        while time.monotonic() < until_s and not any(map(_raised_nothing, failures)):
            try:
                failures += self.handle_messages(handle)
            except RunFailedError:
                if all(map(_lost_connection, failures)):
                    raise
            time.sleep(0.1)
        root = cause(failures)
        root.setdefault("machine", self._fleet.name(0))
        return root

    def end(self, signal: int | None) -> None:
        """Tell the other machines that the job ends; `signal` is the signal that ended it early."""
        self._fleet.tell({"kind": "end of job", "signal": signal})

    def _arrival(self, machine: int, report: Report) -> Event | None:
        parcels = self._fleet.parcels.get(machine)
        if parcels is None or report["kind"] != "saved":
            return None
        folder = checkpoint.unfinished_folder(self._job.run_dir, int(report["step"]))
        return parcels.take(report["file"], folder)

    def _handle_arrived(self, seen: Seen, handle: Callable[[Seen, Report], None]) -> None:
        waiting = self._waiting[seen.seat]
        while waiting and ((there := waiting[0][1]) is None or there.is_set()):
            handle(seen, waiting.popleft()[0])

    def _gone(self, machine: int, silent: str) -> Report:
        seen = next(each for each in self.away.values() if self._job.home(each.seat) == machine)
        report = {**seen.failure(self._job, silent), "machine": self._fleet.name(machine)}
        return {**report, "phase": str(seen.pulse), "batch": None}


class Follower:
    """Communicates with machine 0's launcher, for the launcher of another machine.

    `ended` is machine 0's message that the job has ended; None before. `away` is empty, because
    only machine 0 watches workers of other machines.
    """

    def __init__(self, fleet: Fleet, job: Job, stop: StopFlag) -> None:
        self._fleet, self._job, self._stop = fleet, job, stop
        self.away: dict[Seat, Seen] = {}
        self.ended: Message | None = None
        self._told_signal = False
        self._reported_s = 0.0

    @property
    def signal(self) -> int | None:
        """The signal that ended the run early; None if there was none."""
        return None if self.ended is None else self.ended["signal"]

    def pass_on(self, report: Report) -> bool:
        """Send a report to machine 0, and return True: machine 0's launcher handles the report.

        If the report is about a saved file that machine 0 cannot read, the file is sent too.
        """
        self._fleet.tell({"kind": "report", "report": spelled(report)})
        if report["kind"] == "saved" and (parcels := self._fleet.parcels.get(0)):
            folder = checkpoint.unfinished_folder(self._job.run_dir, report["step"])
            parcels.send(folder / report["file"].name, remove=True)
        return True

    def report_progress(self, workers: Sequence[Seen]) -> None:
        """Tell machine 0 about a signal at once, and about the workers' progress once a second."""
        if self._stop.value and not self._told_signal:
            self._fleet.tell({"kind": "signal", "signal": self._stop.value})
            self._told_signal = True
        if time.monotonic() - self._reported_s > 1.0:
            self._reported_s = time.monotonic()
            looks = [[self._job.number(each.seat), bytes(each.pulse).hex()] for each in workers]
            self._fleet.tell({"kind": "looks", "looks": looks})

    def handle_messages(self, handle: Callable[[Seen, Report], None]) -> list[Report]:
        """Read the messages of machine 0, and set `ended` if one of them ends the job.

        The result is always empty. `Leader.handle_messages` returns failures; here a failure is
        raised. `handle` is not used.

        Raises:
            WorkerFailedError: A worker failed on some machine.
            RunFailedError: Something else failed, such as a transfer of files, or machine 0 gives
                no sign of life.
            Interrupted: Machine 0's launcher got a second signal to stop, for example by Ctrl-C.
        """
        for message in iter(self._fleet.hear, None):
            if message["kind"] == "failed":
                raise read_error(message)
            if message["kind"] != "end of job":
                raise self._fleet.given_up(message)
            self.ended = message
            return []  # later messages are about the next job
        if silent := self._fleet.silent():
            raise RunFailedError(silent[1])
        return []

    def verdict(self, failures: list[Report], handle: Callable[[Seen, Report], None]) -> Report:
        """Report failures to machine 0, and wait until it names the cause of all failures.

        The cause is raised. If machine 0 names none in time, return the most likely cause among
        `failures`. `handle` is not used.

        Raises:
            WorkerFailedError: Machine 0 names the failure of a worker.
            RunFailedError: Machine 0 names another cause, or gives no sign of life.
            Interrupted: Machine 0's launcher got a second signal to stop, for example by Ctrl-C.
        """
        for failure in failures:
            self.pass_on(failure)
        until_s = time.monotonic() + VERDICT_S
        while time.monotonic() < until_s and self.ended is None:
            self.handle_messages(handle)
            time.sleep(0.1)
        return {**cause(failures), "machine": self._fleet.name(self._fleet.rank)}


def cause(failures: Sequence[Report]) -> Report:
    """Return the failure that probably caused all others.

    If a worker died or hangs, this is the cause. Otherwise it is an exception. A lost connection is
    the cause only if there is no other failure. Among failures of the same kind, the earliest is
    the cause.
    """

    def order(failure: Report) -> tuple[bool, bool, float]:
        # A connection is lost when the worker at its other end fails. The time comes last, because
        # the clocks of machines differ.
        return not _raised_nothing(failure), _lost_connection(failure), failure["time"]

    return min(failures, key=order)


def _lost_connection(failure: Report) -> bool:
    words = failure.get("traceback", "")
    return any(each in words for each in ("torch/distributed/", "transport/network.py"))


def _raised_nothing(failure: Report) -> bool:
    return not failure.get("traceback")
