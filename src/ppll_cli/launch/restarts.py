"""`recover=stage`: restarts a failed worker, while the other workers are blocked or starved.

The new process continues from the worker's latest snapshot (`worker.snapshots`), and reads again
the messages that came after the snapshot (`transport.journal`).
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Recovery
from ppll_cli.launch import failure
from ppll_cli.launch.machines.others import Report
from ppll_cli.launch.watched import LEAVE_S, Watched
from ppll_cli.observe.progress import Look
from ppll_cli.observe.spans import Restart

log = logging.getLogger(__name__)

SAME_PLACE = 3
"""A worker that failed this many times in succession at the same batch is not restarted again."""


@dataclass
class _History:
    """The failures of one worker, and the latest reports that it sent.

    Attributes:
        failures: For each failure, its time, and the batch or mark at which the worker failed (None
            if it was still starting).
        reported: The step of the latest report, by the report's kind, split and module.
        began_s: When the current restart began, on the clock of `perf_counter`; None if the worker
            is not restarting.
    """

    failures: list[tuple[float, str | None]] = field(default_factory=list)
    reported: dict[tuple[Any, ...], int] = field(default_factory=dict)
    began_s: float | None = None


class Restarts:
    """Restarts failed workers, and counts their failures.

    Snapshots are in `folder`, in shared memory. `tell` is called with a report of kind "restart"
    when a failure is detected, and with one of kind "restarted" when the new process continues.
    `began_s` and `ended_s` in these reports are times of `perf_counter`.
    """

    def __init__(self, job: Job, folder: Path, tell: Callable[[Report], None]) -> None:
        self._job, self._folder, self._tell = job, folder, tell
        self._history: dict[Seat, _History] = defaultdict(_History)

    def recovery(self, seat: Seat) -> Recovery | None:
        """Return what a worker's process needs to write snapshots, and to continue from them.

        Return None if the worker cannot be restarted.
        """
        if seat.stage not in self._job.restartable:
            return None
        folder = self._folder / f"stage-{seat.stage}"
        folder.mkdir(exist_ok=True)
        return Recovery(str(folder), self._history[seat].reported.get(("saved", None, None), -1))

    def repeats(self, report: Report) -> bool:
        """Record a worker's report.

        Return whether an earlier process of this worker has already sent the same report.
        """
        kind, step = report["kind"], report.get("step", 0)
        if kind not in ("ready", "metrics", "counted", "saved"):
            return False
        history = self._history[_seat(report)]
        if kind == "ready" and history.began_s is not None:
            times = {"began_s": history.began_s, "ended_s": report["at_s"]}
            self._tell({**report, "kind": "restarted", **times})
            history.began_s = None
        about = kind, report.get("split"), report.get("module")
        if step <= history.reported.get(about, -1):
            return True
        history.reported[about] = step
        return False

    def restart(
        self,
        failures: list[Report],
        workers: list[Watched],
        handle: Callable[[Watched, Report], None],
    ) -> list[Report]:
        """Restart all failed workers, and return an empty list.

        If a restart cannot help some of them, restart none, and return the failures of these
        workers. `handle` gets the reports that a failed worker has left in its pipe.

        Raises:
            RunFailedError: The fork server has ended, or is stopped.
        """
        now_s = time.perf_counter()
        by_seat = {watched.seat: watched for watched in workers}
        first = {_seat(each): each for each in reversed(failures)}
        failed = [(by_seat[seat], report) for seat, report in first.items()]
        # A worker that is done is not restarted: it only waits for permission to exit.
        failed = [(watched, report) for watched, report in failed if watched.done is None]
        final = [report for watched, report in failed if not self._may_help(watched.seat, report)]
        if final:
            return final
        for watched, report in failed:
            self._restart_one(watched, {**report, "began_s": now_s}, handle)
        return []

    def _may_help(self, seat: Seat, report: Report) -> bool:
        """Record a failure, and return whether a restart may help."""
        if report.get("final") or seat.stage not in self._job.restartable:
            return False
        recover, failures = self._job.settings.recover, self._history[seat].failures
        now_s = time.monotonic()
        failures.append((now_s, report["batch"]))
        recent = [when_s for when_s, _ in failures if now_s - when_s <= 60 * recover.minutes]
        places = {place for _, place in failures[-SAME_PLACE:]}
        repeated = len(failures) >= SAME_PLACE and len(places) == 1
        return not repeated and len(recent) <= recover.tries

    def _restart_one(
        self, watched: Watched, report: Report, handle: Callable[[Watched, Report], None]
    ) -> None:
        history = self._history[watched.seat]
        watched.kill()  # the process may be stopped, or hang
        watched.process.join(LEAVE_S)
        for left in watched.read(LEAVE_S):
            if left["kind"] != "failed":
                handle(watched, left)
        # Set only now: a "ready" of the old process, handled above, must not end the restart.
        history.began_s = report["began_s"]
        watched.clean_up()
        watched.pulse.start_again()
        self._tell({**report, "kind": "restart"})
        watched.begin(self._job, self.recovery(watched.seat))


class RestartLog:
    """Lists the restarts of workers. `before` has the restarts before the run was resumed."""

    def __init__(self, job: Job, before: Sequence[Mapping[str, Any]] = ()) -> None:
        self._job, self._before = job, before
        self._reports: list[Report] = []

    def take(self, report: Report) -> None:
        """Record and log that a worker restarts, or that its new process continues."""
        if report["kind"] == "restart":
            failure.tell_of_restart(report)
            self._end(report, report["began_s"])  # a worker may fail again while it restarts
            self._reports.append({**report, "ended_s": None, "seconds": None})
            return
        seconds = report["ended_s"] - report["began_s"]
        log.info("stage %d continues after %.1f s", report["stage"], seconds)
        self._end(report, report["ended_s"], seconds)

    def _end(self, report: Report, ended_s: float, seconds: float | None = None) -> None:
        """If the worker of a report is restarting, record the end of this restart.

        `seconds` is the restart's duration; None if the worker failed again during the restart.
        """
        for each in self._reports:
            if _seat(each) == _seat(report) and each["ended_s"] is None:
                each.update(ended_s=ended_s, seconds=seconds)

    def marked(self, looks: Sequence[Look]) -> list[Look]:
        """Return `looks`, the workers' states, with `restarts` True for workers that restart."""
        # The display calls this in its own thread, so read a copy of the list.
        now = {_seat(each) for each in list(self._reports) if each["ended_s"] is None}
        seats = zip(self._job.seats, looks, strict=True)
        return [look._replace(restarts=seat in now) for seat, look in seats]

    def listed(self) -> list[Mapping[str, Any]]:
        """Return the entry of `summary.json` for each restart."""
        keys = ("stage", "phase", "batch", "error", "seconds")
        return [*self._before, *({key: each[key] for key in keys} for each in self._reports)]

    def drawn(self) -> list[Restart]:
        """Return the restarts that have ended, for the picture of the timeline."""
        keys = ("began_s", "ended_s", "error", "phase", "batch")
        ended = [each for each in self._reports if each["ended_s"] is not None]
        return [Restart(self._job.number(_seat(e)), *(e[key] for key in keys)) for e in ended]


def _seat(report: Report) -> Seat:
    return Seat(report["stage"], report["replica"])
