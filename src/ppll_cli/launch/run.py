"""Executes one run, from its settings to the results in its run directory."""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ppll_cli.config import objective
from ppll_cli.config.settings import Settings
from ppll_cli.config.targets import make, require
from ppll_cli.errors import ConfigError, Interrupted, PpllError, RunFailedError, WorkerFailedError
from ppll_cli.job import checkpoint
from ppll_cli.job.checkpoint import Checkpoint
from ppll_cli.job.parts import Parts
from ppll_cli.job.pulse import Pulse
from ppll_cli.launch import advice, beginning, failure
from ppll_cli.launch.facts import facts
from ppll_cli.launch.launcher import launch
from ppll_cli.launch.locks import locked
from ppll_cli.launch.machines.fleet import Fleet
from ppll_cli.launch.machines.follow import announce
from ppll_cli.launch.machines.others import Report
from ppll_cli.launch.restarts import RestartLog
from ppll_cli.launch.results import write_results
from ppll_cli.launch.resume import Recorded
from ppll_cli.launch.saving import Saving
from ppll_cli.launch.summary import summarise
from ppll_cli.launch.wiring import fitting
from ppll_cli.leaves.files import write_json
from ppll_cli.leaves.names import class_path
from ppll_cli.observe.console import Console
from ppll_cli.observe.logs import only_warn, to_file
from ppll_cli.observe.metrics import Metrics
from ppll_cli.observe.progress import Look, Progress
from ppll_cli.observe.tracker import Tracked, guarded
from ppll_cli.prepare.preparation import Prepared, prepare
from ppll_cli.tasks.task import lower_is_better
from ppll_cli.transport.channel import Transport

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Run:
    """Trains one run, and writes the results into its run directory.

    Attributes:
        settings: The checked content of `config`.
        config: The run's configuration.
        choices: The chosen option of each configuration group, such as {"schedule": "ppll"}.
        run_dir: The run directory. It exists, and has no files of another run.
        before: The record of the run to be resumed; None for a new run.
        find_changes: Finds the overrides that turn the defaults into `config`.
        fleet: The machines of the run, if there are several; this process is on machine 0.
        options: Command-line options that name folders of configurations, such as `--config-dir`.
        began_s: The time from which `max_minutes` are counted, on the clock of `time.monotonic`.
        direction: "minimize" or "maximize" if a sweeper searches for good settings; None if there
            is no such sweeper, or if its direction is unknown.
        objective: Key of the number in `summary.json` that a sweeper optimizes; set by `execute`.
    """

    settings: Settings
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    run_dir: Path
    before: Recorded | None = None
    find_changes: Callable[[], Sequence[str]] = tuple
    fleet: Fleet | None = None
    options: Sequence[str] = ()
    began_s: float = field(default_factory=time.monotonic)
    direction: str | None = None

    def __post_init__(self) -> None:
        limit = self.settings.max_minutes
        self._until_s = None if limit is None else self.began_s + 60 * limit
        self.changes: Sequence[str] | None = None
        self.objective = ""
        self._started_s = time.perf_counter()
        self._told: PpllError | None = None

    def execute(self) -> dict[str, Any]:
        """Prepare the run, train, and write the results.

        Return the content of `summary.json`. If the run ends early, log the reason at once.

        Raises:
            ConfigError: The configuration is wrong; no worker was started.
            WorkerFailedError: A worker failed; the summary has been written.
            RunFailedError: Something else failed; the summary has been written if possible.
            Interrupted: A signal ended the run early; the summary has been written.
        """
        transport: Transport = make("transport", self.settings.transport)
        path = self.settings.transport["_target_"]
        remedy = f"see {class_path(Transport)}"
        needed = ("depth", "wire_dtype", "obstacle", "descriptors", "channel")
        require("transport._target_", path, transport, needed, remedy)
        self.tracker = guarded(self.choices["tracker"], self.settings.tracker)
        try:
            with ExitStack() as held:
                if self.before is not None:
                    held.enter_context(locked(self.run_dir))
                return self._execute(held, transport)
        except OSError as error:
            if not failure.is_of_disk(error, self.run_dir):
                raise
            failed = failure.run_failed(error, self.run_dir)
            self._tell(failed)
            raise failed from error
        except (WorkerFailedError, RunFailedError, Interrupted) as error:
            self._tell(error)
            raise

    def _execute(self, held: ExitStack, transport: Transport) -> dict[str, Any]:
        start = None if self.before is None else checkpoint.newest(self.run_dir)
        self.prepared = self._prepare(start)
        job = self.prepared.job
        self._restarts = RestartLog(job, () if start is None else beginning.restarts(self.run_dir))
        name = self.choices["transport"]
        transport = fitting(name, transport, job, machine=0)
        self.metrics = Metrics(self.run_dir / "metrics.jsonl", job.task, len(job.layout.modules))
        was = () if start is None else (start.manifest.parts, start.manifest.counted)
        parts = Parts(job, self.choices["transport"], *was)
        known = self.choices, self.prepared, self.metrics, parts, self._restarts
        self._summarise = partial(summarise, *known)
        wanted = self.settings.objective
        metric, lower = job.task.metric, lower_is_better(job.task)
        self.objective = objective.chosen(wanted, self._summarise(), metric)
        objective.check_direction(self.objective, self.direction, metric, lower)
        if self.before is None:
            beginning.record(self.run_dir, self.config, self.choices, self.prepared)
            held.enter_context(locked(self.run_dir))
        elif summary := self._finished(self.before, start):
            return summary
        if self.fleet is not None:
            self._gather(self.fleet)
        for note in self.prepared.notes:
            log.info(note)
        self.console = Console(facts(self.prepared))
        if self.before is not None:
            beginning.go_back(self.run_dir, start, self.metrics, job.course.steps)
        self._saving = Saving(self.prepared, self.metrics, parts)
        self.tracker.start(self._tracked())
        with self.metrics, closing(self.console):
            told = self._on_report, self._on_start
            try:
                ending = launch(job, transport, *told, self.fleet, self._until_s)
            except (WorkerFailedError, RunFailedError, Interrupted) as error:
                self._fail(error)
                raise
            except ConfigError:
                raise
            except Exception as error:
                failed = failure.run_failed(error, self.run_dir)
                self._fail(failed, error)
                raise failed from error
        status = "completed" if ending.signal is None else "interrupted"
        summary = self._finish(ending.reports, status)
        self.console.end(summary, self.run_dir, self._worth_trying())
        if ending.signal is not None:
            raise Interrupted(ending.signal)
        return summary

    def _finished(self, before: Recorded, start: Checkpoint | None) -> dict[str, Any] | None:
        beginning.check_data(before, self.settings.data, self.prepared.subject.identity)
        steps = self.prepared.job.course.steps
        known = self.run_dir, start, steps, self.metrics, self.objective
        if (summary := beginning.finished(*known)) is not None:
            more = advice.how_to_train_longer(self.settings, self.prepared.job)
            Console(facts(self.prepared)).nothing_to_do(summary, self.run_dir, more)
        return summary

    def _tell(self, error: PpllError) -> None:
        if error is not self._told:
            self._told = error
            recorded = self.before.config if self.before is not None else None
            known = self.options, self.changes, self.config, self.choices, recorded
            failure.tell(error, self.run_dir, advice.resume_command(self.run_dir, *known))

    def _gather(self, fleet: Fleet) -> None:
        fleet.jobs += 1
        try:
            announce(fleet, self.config, self.prepared, self.run_dir)
        except ConfigError:
            if self.before is None:
                beginning.remove_record(self.run_dir)
            raise
        except RunFailedError as error:
            summary = {**self._summarise(status="failed"), "error": str(error)}
            write_json(self.run_dir / "summary.json", summary)
            raise

    def _prepare(self, start: Checkpoint | None) -> Prepared:
        settings, cuts = self.settings, None
        if self.before is not None:  # a resumed run keeps its modules
            cuts = self.before.cuts if start is None else start.manifest.cuts
        if cuts is not None and not settings.fixes_modules:
            local = {**settings.local, "cuts": list(cuts)}
            settings = settings.model_copy(update={"local": local})
        if start is not None:  # the checkpoint has all weights
            settings = settings.model_copy(update={"weights": None, "weights_partial": False})
        machines = [] if self.fleet is None else self.fleet.machines
        prepared = prepare(settings, str(self.run_dir), machines)
        if self.before is not None:
            beginning.check_weights(self.before, prepared.weights)
            prepared = replace(prepared, weights=self.before.weights)
        if start is None:
            return prepared
        beginning.check_restorable(prepared.job, start)
        job = replace(prepared.job, start=start.step, checkpoint=start.folder)
        return replace(prepared, job=job)

    def _worth_trying(self) -> str | None:
        if self.fleet is not None or self._tracked().sweep or self.changes is None:
            return None
        known = self.settings, self.prepared, self.options, self.changes
        with only_warn("the command to try next could not be found"):
            return advice.comparison(*known, resumed=self.before is not None)
        return None

    def _on_start(self, pulses: Sequence[Pulse]) -> None:
        with only_warn("the settings that differ from the defaults could not be listed"):
            self.changes = self.find_changes()  # meanwhile, the workers start
            self.console.settings(self.changes)
        self.console.begin(self.run_dir)
        self._pulses = pulses
        job = self.prepared.job
        self._progress = Progress(job.start, job.course.steps, job.replicas)
        self.console.watch(self._looks)

    def _looks(self) -> list[Look]:
        return self._restarts.marked([pulse.look() for pulse in self._pulses])

    def _on_report(self, report: Report) -> None:
        if report["kind"] == "ready":
            # A report may be read seconds after it was sent, and a later report may be read first.
            self._started_s = max(report["at_s"], self._started_s)
            self.metrics.begin(self._started_s)
        elif report["kind"] == "metrics":
            line = self.metrics.add(report)
            self.console.metrics(line)
            self.tracker.metrics(line)
            if line["split"] == "train" and line["module"] is None:
                now = self._progress.update(time.monotonic(), self._looks())
                seats = self.prepared.job.seats
                stages = [
                    {"index": seat.stage, "replica": seat.replica, **stage.fields()}
                    for seat, stage in zip(seats, now.stages, strict=True)
                ]
                self.tracker.stages(line["step"], stages, line["seconds"])
        elif report["kind"] in ("restart", "restarted"):
            self._restarts.take(report)
        elif report["kind"] in ("counted", "saved"):
            self._saving.take(report, time.perf_counter() - self._started_s)

    def _fail(self, error: PpllError, cause: Exception | None = None) -> None:
        self._tell(error)
        if cause is not None:
            to_file("".join(traceback.format_exception(cause)))
        self._finish([], "interrupted" if isinstance(error, Interrupted) else "failed", error)

    def _finish(
        self, reports: list[Report], status: str, error: PpllError | None = None
    ) -> dict[str, Any]:
        seconds = time.perf_counter() - self._started_s
        summarised = partial(self._summarise, reports=reports, seconds=seconds)
        known = reports, self._restarts.drawn(), status, error
        summary, problems = write_results(self.prepared.job, summarised, self.tracker, *known)
        first = None
        if problems and error is None:
            first = problems.pop(0)
            self._tell(first)
        for problem in problems:
            log.error("  also: %s", problem)
        if first is not None:
            raise first
        return summary

    def _tracked(self) -> Tracked:
        job, resumed = self.prepared.job, self.before is not None
        known = self.run_dir, self.config, self.choices, job.task.metric, job.start, resumed
        return Tracked(*known, lower_is_better=lower_is_better(job.task))
