"""One run: from settings to a run directory with results."""

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppll_cli.errors import ConfigError, Interrupted, WorkerFailedError
from ppll_cli.observe.console import Console
from ppll_cli.observe.metrics import Metrics
from ppll_cli.runtime import checkpoint
from ppll_cli.runtime.checkpoint import SavedFile
from ppll_cli.runtime.launcher import Report, launch
from ppll_cli.runtime.prepare import prepare
from ppll_cli.runtime.summary import summarise
from ppll_cli.settings import Settings
from ppll_cli.targets import make
from ppll_cli.transport.channel import Transport
from ppll_cli.transport.choice import usable
from ppll_cli.transport.descriptors import check_descriptors

log = logging.getLogger(__name__)


class Run:
    """A run and its directory.

    Args:
        settings: The configuration.
        config: The same as plain data, for the record.
        choices: The option chosen in each group.
        run_dir: Where results go; the folder exists, with nothing of another run in it.
    """

    def __init__(
        self,
        settings: Settings,
        config: Mapping[str, Any],
        choices: Mapping[str, str],
        run_dir: Path,
    ) -> None:
        self.settings, self.config, self.choices, self.run_dir = settings, config, choices, run_dir
        self._saved: dict[int, list[SavedFile]] = {}
        self._ready = 0
        self._started_s = time.perf_counter()

    def execute(self) -> dict[str, Any]:
        """Prepare, train, and write the results.

        Returns:
            What `summary.json` holds.

        Raises:
            ConfigError: The configuration is wrong; no worker was started.
            WorkerFailedError: A worker failed; the summary has been written.
            Interrupted: A second signal came; the summary has been written.
        """
        transport: Transport = make("transport", self.settings.transport)
        self.prepared = prepare(self.settings, str(self.run_dir))
        self._write_config()
        for note in self.prepared.notes:
            log.info(note)
        job = self.prepared.job
        name, channels = self.choices["transport"], job.channels()
        size = sum(room.slots * room.size for room in channels.values())
        transport = usable(name, transport, size, job.devices)
        check_descriptors(
            name,
            transport,
            job.stages,
            [(*channel, room.slots) for channel, room in channels.items()],
            tensors=max((len(edge.names) for edge in job.edges), default=0),
        )
        self.console = Console(job.task.metric, job.course.epochs)
        path = self.run_dir / "metrics.jsonl"
        with Metrics(path, job.task, len(job.layout.modules)) as self.metrics:
            try:
                ending = launch(job, transport, self._on_report)
            except (WorkerFailedError, Interrupted) as error:
                status = "failed" if isinstance(error, WorkerFailedError) else "interrupted"
                self._finish([], status, error=str(error))
                raise
        early = ending.signal is not None and ending.reports[-1]["step"] < job.course.steps
        summary = self._finish(ending.reports, "interrupted" if early else "completed")
        self.console.end(summary, _short(self.run_dir))
        if early:
            assert ending.signal is not None
            raise Interrupted(ending.signal)
        return summary

    def _on_report(self, report: Report) -> None:
        if report["kind"] == "ready":
            self._ready += 1
            if self._ready == self.prepared.job.stages:
                self._started_s = time.perf_counter()
        elif report["kind"] == "metrics":
            self.console.metrics(self.metrics.add(report))
        elif report["kind"] == "saved":
            files = self._saved.setdefault(report["step"], [])
            files.append(report["file"])
            if len(files) == self.prepared.job.stages:
                step, keep = report["step"], self.settings.checkpoint.keep
                checkpoint.finish(self.run_dir, step, report["epoch"], files, keep)
                del self._saved[step]

    def _finish(
        self, reports: list[Report], status: str, error: str | None = None
    ) -> dict[str, Any]:
        """Write everything that stands in the run directory at the end."""
        seconds = time.perf_counter() - self._started_s
        summary = summarise(
            self.settings, self.choices, self.prepared, self.metrics, reports, status, seconds
        )
        if error is not None:
            summary["error"] = error
        last = self.run_dir / "checkpoints" / "last"
        if last.exists():
            checkpoint.write_model(last, self.run_dir / "model.safetensors")
        for unfinished in self.run_dir.glob("checkpoints/.step-*"):
            shutil.rmtree(unfinished)
        text = json.dumps(summary, indent=2, allow_nan=False)
        unfinished_summary = self.run_dir / "summary.json.unfinished"
        unfinished_summary.write_text(text + "\n")
        unfinished_summary.rename(self.run_dir / "summary.json")
        return summary

    def _write_config(self) -> None:
        record = {**self.config, "choices": dict(self.choices)}
        record["threads"] = self.prepared.job.threads
        try:
            with (self.run_dir / "config.json").open("x") as file:
                json.dump(record, file, indent=2)
        except FileExistsError:
            raise ConfigError(
                "hydra.run.dir", self.run_dir, "is in use by another run", "choose another folder"
            ) from None


def _short(path: Path) -> Path:
    """Relative to the current directory where it is inside it."""
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path
