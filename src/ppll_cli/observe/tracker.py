"""Defines the interface of trackers, and a guard, so that their errors do not stop a run.

Imports neither torch nor any tracker's library.
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ppll_cli.config.targets import make, require
from ppll_cli.leaves.metric_lines import CONDITIONS, LAST_STEP
from ppll_cli.leaves.names import class_path
from ppll_cli.leaves.printable import error_text
from ppll_cli.observe.conditions import LOCAL

log = logging.getLogger(__name__)

START_LIMIT_S = 5.0
"""Largest number of seconds that training waits for a tracker to start. The tracker imports its
library in this time, because the import would slow training down."""

END_LIMIT_S = 60.0
"""Seconds that a tracker without `limit_s` may take to finish at the end of a run."""

ABANDONED_LIMIT_S = 5.0
"""Seconds that a tracker may take, after `abandon`, to free what the next run's tracker needs."""


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told about its run.

    Attributes:
        run_dir: The run directory.
        config: The settings of the run, nested as in `config.json`.
        choices: The option of each configuration group.
        metric: Name of the task's metric, a key of the lines of `metrics.jsonl`.
        step: Optimizer steps done before this start of the run; 0 for a new run.
        resumed: Whether an existing run is continued, possibly from step 0.
    """

    run_dir: Path
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    metric: str
    step: int = 0
    resumed: bool = False
    lower_is_better: bool = False

    @property
    def name(self) -> str | None:
        """The run's `name`; None if not set.

        In a sweep, the job's folder follows the name, as in `wide/0`.
        """
        given = self.config.get("name")
        if given is None:
            return None
        return f"{given}/{self.run_dir.name}" if self.sweep else str(given)

    @property
    def tags(self) -> list[str]:
        """The user's tags."""
        return [str(tag) for tag in self.config.get("tags") or []]

    @property
    def described(self) -> str:
        """A description of the run, with the name of its directory."""
        groups = ["schedule", "model", "data"]
        groups += ["local"] if self.choices.get("schedule") in LOCAL else []
        said = [self.choices[group] for group in groups if group in self.choices]
        known = ((key, self.config.get(key)) for key in ("gpus", "seed"))
        said += [f"{key}={value}" for key, value in known if value is not None]
        return f"{' '.join(said)} ({self.run_dir.name})"

    @property
    def sweep(self) -> str | None:
        """The name of the run's sweep; None if the run belongs to none."""
        for folder in list(self.run_dir.parents)[:2]:  # a `hydra.sweep.subdir` may have a slash
            if (folder / "multirun.yaml").exists():
                return sweep_name(folder)
        return None


def sweep_name(folder: Path) -> str:
    """Return a sweep's name, DATE/TIME by default: the last two parts of its folder's path."""
    return f"{folder.parent.name}/{folder.name}"


@dataclass(frozen=True)
class Moment:
    """The time of a measurement, which a tracker may receive later.

    Attributes:
        unix_s: Seconds since 1970.
        train_s: Seconds of training, without the time between an interruption and a resume.
    """

    unix_s: float
    train_s: float


class Tracker(Protocol):
    """Receives the progress of a run. A separate thread calls `start` first, and `end` last.

    A tracker is constructed before the run starts, from the keys of its configuration group. The
    constructor opens nothing and sends nothing; it raises a ConfigError for wrong values. If a
    later call raises, the user gets one warning, and the run continues without the tracker.

    A tracker may have an attribute `limit_s`: the seconds within which it must finish all calls
    after the training. If it takes longer, another thread calls its method `abandon`, if it has
    one. `abandon` must immediately end all processes that would outlive the run.
    """

    def start(self, run: Tracked) -> None:
        """Begin to track. `config.json` exists, and training starts next."""

    def metrics(self, line: Mapping[str, Any], at: Moment) -> None:
        """Receive a line of `metrics.jsonl`.

        The line's `module` is the number of a module; it is None for the last module, which has the
        model's own head.
        """

    def stages(self, step: int, stages: Sequence[Mapping[str, Any]], at: Moment) -> None:
        """Receive the fractions of recent time that the stages spent on work and waiting.

        `step` is the number of optimizer steps done. `stages` has a mapping for each stage: index,
        replica, compute_fraction, aux_fraction, starved_fraction, blocked_fraction and
        memory_bytes. Unknown values are None.
        """

    def end(self, summary: Mapping[str, Any]) -> None:
        """Finish tracking. The run has ended, completed or not, and its files are written.

        `summary` is the content of `summary.json`.
        """

    def sweep(self, folder: Path, name: str) -> None:
        """Receive the comparison of a finished sweep. The tracker gets no other call.

        `folder` has `comparison.png` and `comparison.csv`. `name` is the name of the sweep.
        """


class NoTracker(Tracker):
    """A tracker that does nothing."""


class Guarded:
    """Protects a run from its tracker, whose errors and delays must not stop the run.

    A thread executes the calls. The caller waits only for the first and the last call, within time
    limits. After an exception the tracker gets no more calls.
    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name = tracker, name
        self._limit_s = float(getattr(tracker, "limit_s", END_LIMIT_S))
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._started = threading.Event()
        self._lost = threading.Lock()  # acquired at the first failure, never released

    def start(self, run: Tracked) -> None:
        """Start the tracker, and wait for it for at most `START_LIMIT_S`."""
        self._tell("start", run)
        self._started.wait(START_LIMIT_S)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Pass a line of `metrics.jsonl` to the tracker."""
        self._tell("metrics", line, Moment(time.time(), line["seconds"]))

    def stages(self, step: int, stages: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Pass the stages' fractions of time to the tracker; `seconds` is the time of training."""
        self._tell("stages", step, stages, Moment(time.time(), seconds))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Pass the summary to the tracker, and wait until it has finished, up to a time limit."""
        self._tell("end", summary)
        self._finish()

    def sweep(self, folder: Path, name: str) -> None:
        """Pass a sweep's comparison to the tracker, and wait for it, up to a time limit."""
        self._tell("sweep", folder, name)
        self._finish()

    def _tell(self, what: str, *arguments: Any) -> None:
        if not self._lost.locked():
            self._calls.put((what, arguments))
        if not self._thread.ident and not self._lost.locked():
            try:
                self._thread.start()
            except RuntimeError as error:  # the system cannot start another thread
                self._lose(str(error))
                self._started.set()

    def _finish(self) -> None:
        if not self._thread.ident:
            return
        self._calls.put(None)
        self._thread.join(self._limit_s)
        if self._thread.is_alive():
            late = f"it has not finished {self._limit_s:g} s after the end"
            self._lose(late, "its last data may be missing")
            with suppress(Exception):
                if abandon := getattr(self._tracker, "abandon", None):
                    abandon()
                    self._thread.join(ABANDONED_LIMIT_S)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            what, arguments = call
            if self._lost.locked():
                continue
            try:
                getattr(self._tracker, what)(*arguments)
            except BaseException as error:  # even SystemExit, which would end the thread silently
                self._lose(error_text(error))
                log.debug("tracker=%s", self._name, exc_info=True)
            self._started.set()

    def _lose(self, why: str, effect: str = "the run continues without it") -> None:
        if self._lost.acquire(blocking=False):
            said = " ".join(why.split())
            log.warning("tracker=%s has failed: %s; %s", self._name, said, effect)


def guarded(name: str, config: Mapping[str, Any]) -> Guarded:
    """Construct the tracker that a configuration names, and return it wrapped in a `Guarded`.

    Raises:
        ConfigError: The tracker cannot be constructed, or lacks a method.
    """
    tracker = make("tracker", config)
    names = ("start", "metrics", "stages", "end", "sweep")
    remedy = f"see {class_path(Tracker)}"
    require("tracker._target_", config["_target_"], tracker, names, remedy)
    return Guarded(tracker, name)


def line_scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of `metrics.jsonl`, by keys such as `module_3/train/loss`.

    Keys of the last module have no `module_3/`. All modules share the learning rate, so it is
    returned only for the last module.
    """
    module = "" if line["module"] is None else f"module_{line['module']}/"
    prefix = f"{module}{line['split']}/"
    beside = CONDITIONS - {"samples_per_second"} - LAST_STEP | ({"lr"} if module else set())
    return {
        prefix + key: float(value)
        for key, value in line.items()
        if key not in beside and isinstance(value, int | float)
    }


def stage_scalars(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return each stage's numbers, by keys such as `stage_0/compute_fraction`, and the bubble.

    With replicas, the keys of replica 1 begin with `stage_0_replica_1/`. The bubble's key is
    `pipeline/bubble_fraction`; it is missing if the time that a stage waited is unknown.
    """
    found = {
        f"{_stage(stage)}/{key}": float(value)
        for stage in stages
        for key, value in stage.items()
        if key not in ("index", "replica") and isinstance(value, int | float)
    }
    waits = [stage.get(f"{kind}_fraction") for stage in stages for kind in ("starved", "blocked")]
    known = [wait for wait in waits if wait is not None]
    if stages and len(known) == len(waits):
        found["pipeline/bubble_fraction"] = sum(known) / len(stages)
    return found


def _stage(stage: Mapping[str, Any]) -> str:
    replica = stage.get("replica", 0)
    return f"stage_{stage['index']}" + (f"_replica_{replica}" if replica else "")


def samples(run_dir: Path) -> list[Path]:
    """Return the files of a run's sample pictures."""
    return sorted((run_dir / "samples").glob("*.png"))


def tree(value: Any) -> Any:
    """Replace lists in a JSON value by what trackers can show, and remove None from dictionaries.

    A list that contains a list or a dictionary becomes a dictionary: {"0": first element, ...}. Any
    other list becomes a string, such as "1, 2".
    """
    if isinstance(value, list):
        if not any(isinstance(inner, Mapping | list) for inner in value):
            return ", ".join(str(inner) for inner in value)
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        return {str(key): tree(inner) for key, inner in value.items() if inner is not None}
    return value
