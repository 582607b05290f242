"""Completes a checkpoint when the workers have reported that all its files are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppll_cli.job import checkpoint
from ppll_cli.job.job import Seat
from ppll_cli.job.manifest import Manifest, SavedFile
from ppll_cli.job.parts import Parts, Worker
from ppll_cli.launch.machines.others import Report
from ppll_cli.observe.metrics import Metrics
from ppll_cli.prepare.preparation import Prepared
from ppll_cli.tasks.task import lower_is_better


@dataclass
class _Reported:
    files: dict[int, SavedFile] = field(default_factory=dict)
    workers: dict[Seat, Worker] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0


class Saving:
    """Collects the workers' reports about each checkpoint, and then completes the checkpoint."""

    def __init__(self, prepared: Prepared, metrics: Metrics, parts: Parts) -> None:
        self._job, self._cuts = prepared.job, prepared.cuts
        self._metrics, self._parts = metrics, parts
        self._unfinished: dict[int, _Reported] = {}

    def take(self, report: Report, seconds: float) -> None:
        """Record a worker's report about a checkpoint, and complete it after the last report.

        Args:
            report: A report of kind `counted`, which each worker sends, or `saved`, which one
                worker of each stage sends when it has written the stage's file.
            seconds: How long the run has trained since it was started or resumed.

        Raises:
            OSError: A file cannot be written, or the run directory was moved.
        """
        step, job = report["step"], self._job
        reported = self._unfinished.setdefault(step, _Reported())
        if report["kind"] == "counted":
            reported.workers[Seat(report["stage"], report["replica"])] = report["worker"]
        else:
            reported.files[report["stage"]] = report["file"]
            reported.epoch = report["epoch"]
            # The last stage has now reported all metrics before this checkpoint.
            if report["stage"] == job.stages - 1:
                reported.metrics = self._metrics.state()
        if len(reported.files) == job.stages and len(reported.workers) == len(job.seats):
            self._finish(step, self._unfinished.pop(step), seconds)

    def _finish(self, step: int, reported: _Reported, seconds: float) -> None:
        self._metrics.check()  # the run directory may have been moved
        job = self._job
        workers = [reported.workers[seat] for seat in job.seats]
        manifest = Manifest(
            step,
            reported.epoch,
            self._cuts,
            dict(reported.metrics),
            tuple(reported.files[stage] for stage in range(job.stages)),
            tuple(self._parts.listed(step, seconds, workers)),
            tuple(self._parts.counted(workers)),
        )
        kept = job.settings.checkpoint
        best = kept.best and self._is_best(step)
        checkpoint.finish(job.run_dir, manifest, kept.keep, best)

    def _is_best(self, step: int) -> bool:
        split = "val" if "val" in self._job.course.samples else "test"
        found = self._metrics.history(split)
        kept = checkpoint.best_step(self._job.run_dir)
        now, best = found.get(step), found.get(kept) if kept is not None else None
        if now is None or best is None:
            return now is not None
        return now < best if lower_is_better(self._job.task) else now > best
