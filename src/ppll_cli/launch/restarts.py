"""`recover=stage`: restarts a failed worker, while the other workers are blocked or starved.

The new process continues from the worker's latest snapshot (`worker.snapshots`). It reads
again the messages that its stage received after the snapshot (`transport.journal`).
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
    # For each failure: its time, and the batch or mark that the worker was handling (None if the
    # worker had not begun its first).
    failures: list[tuple[float, str | None]] = field(default_factory=list)
    # The step of the latest report, by the report's kind, split and module.
    reported: dict[tuple[Any, ...], int] = field(default_factory=dict)
    began_s: float | None = None  # when the current restart began; None if there is none


class Restarts:
    """Restarts failed workers, and counts their failures.

    Args:
        job: The job of the run.
        folder: Folder in shared memory, for snapshots.
        tell: Called with a report of kind "restart" when a failed worker is restarted, and with
            one of kind "restarted" when the new process continues.
    """

    def __init__(self, job: Job, folder: Path, tell: Callable[[Report], None]) -> None:
        self._job, self._folder, self._tell = job, folder, tell
        self._history: dict[Seat, _History] = defaultdict(_History)

    def recovery(self, seat: Seat) -> Recovery | None:
        """Return what a worker needs to write snapshots, and to continue from them after a restart.

        Return None if the worker cannot be restarted.
        """
        if seat.stage not in self._job.restartable:
            return None
        folder = self._folder / f"stage-{seat.stage}"
        folder.mkdir(exist_ok=True)
        return Recovery(str(folder), self._history[seat].reported.get(("saved", None, None), -1))

    def repeats(self, report: Report) -> bool:
        """Record a worker's report, and return whether it repeats a report of an earlier process.

        A restarted worker computes the steps after its snapshot again, so it repeats their reports.
        If the report ends a restart, `tell` is called, too.
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
        """Restart all failed workers that are not done, and return an empty list.

        If a restart cannot help one of them, restart none. Then return the failures that a restart
        cannot help.

        Args:
            failures: Reports of failures.
            workers: The workers on this machine.
            handle: Called with the unread reports of failed workers, except reports of failures.

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
    """Lists the restarts of workers, for the console, the summary and the timeline.

    `before` has the summary's entries of restarts before the run was resumed.
    """

    def __init__(self, job: Job, before: Sequence[Mapping[str, Any]] = ()) -> None:
        self._job, self._before = job, before
        self._reports: list[Report] = []

    def take(self, report: Report) -> None:
        """Record and log a report of kind "restart" or "restarted" (see `Restarts`)."""
        if report["kind"] == "restart":
            failure.tell_of_restart(report)
            self._end(report, report["began_s"])  # a worker may fail again while it restarts
            self._reports.append({**report, "ended_s": None, "seconds": None})
            return
        seconds = report["ended_s"] - report["began_s"]
        log.info("stage %d continues after %.1f s", report["stage"], seconds)
        self._end(report, report["ended_s"], seconds)

    def _end(self, report: Report, ended_s: float, seconds: float | None = None) -> None:
        for each in self._reports:
            if _seat(each) == _seat(report) and each["ended_s"] is None:
                each.update(ended_s=ended_s, seconds=seconds)

    def marked(self, looks: Sequence[Look]) -> list[Look]:
        """Return the workers' states, with `restarts` True for each worker that is restarting."""
        # The display calls this in its own thread, so read a copy of the list.
        now = {_seat(each) for each in list(self._reports) if each["ended_s"] is None}
        seats = zip(self._job.seats, looks, strict=True)
        return [look._replace(restarts=seat in now) for seat, look in seats]

    def listed(self) -> list[Mapping[str, Any]]:
        """Return all restarts as entries of `summary.json`."""
        keys = ("stage", "phase", "batch", "error", "seconds")
        return [*self._before, *({key: each[key] for key in keys} for each in self._reports)]

    def drawn(self) -> list[Restart]:
        """Return the restarts that have ended, for the picture of the timeline."""
        keys = ("began_s", "ended_s", "error", "phase", "batch")
        ended = [each for each in self._reports if each["ended_s"] is not None]
        return [Restart(self._job.number(_seat(e)), *(e[key] for key in keys)) for e in ended]


def _seat(report: Report) -> Seat:
    return Seat(report["stage"], report["replica"])
