"""Records restarts of workers, for the log, the display, the summary and the timeline."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ppll_cli.job.job import Job, Seat
from ppll_cli.launch import failure
from ppll_cli.launch.watched import Report
from ppll_cli.observe.progress import Look
from ppll_cli.observe.spans import Restart

log = logging.getLogger(__name__)


class RestartLog:
    """Follows the restarts of workers by the launcher's reports of them.

    Args:
        before: The restarts in the summary that was written before the run was resumed.
    """

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
        log.info("stage %d goes on after %.1f s", report["stage"], seconds)
        self._end(report, report["ended_s"], seconds)

    def _end(self, report: Report, ended_s: float, seconds: float | None = None) -> None:
        """End the restart that is under way on a worker, if there is one."""
        for each in self._reports:
            if _seat(each) == _seat(report) and each["ended_s"] is None:
                each.update(ended_s=ended_s, seconds=seconds)

    def marked(self, looks: Sequence[Look]) -> list[Look]:
        """Return the states of all workers, with `restarts` set for workers that restart now."""
        # The display calls this in a thread of its own.
        now = {_seat(each) for each in list(self._reports) if each["ended_s"] is None}
        seats = zip(self._job.seats, looks, strict=True)
        return [look._replace(restarts=seat in now) for seat, look in seats]

    def listed(self) -> list[Mapping[str, Any]]:
        """Return the entry of `summary.json` for each restart."""
        keys = ("stage", "phase", "batch", "error", "seconds")
        return [*self._before, *({key: each[key] for key in keys} for each in self._reports)]

    def drawn(self) -> list[Restart]:
        """Return the restarts for the timeline."""
        return [
            Restart(
                self._job.number(_seat(each)),
                each["began_s"],
                each["ended_s"],
                each["error"],
                each["phase"],
                each["batch"],
            )
            for each in self._reports
            if each["ended_s"] is not None
        ]


def _seat(report: Report) -> Seat:
    return Seat(report["stage"], report["replica"])
