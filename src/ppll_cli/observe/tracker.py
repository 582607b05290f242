"""What a tracker is told of a run, and what keeps a tracker from ever stopping one.

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
from ppll_cli.observe.conditions import LOCAL
from ppll_cli.observe.runs import CONDITIONS, LAST_STEP

log = logging.getLogger(__name__)

START_LIMIT_S = 5.0
"""How long training waits for a tracker to start: its imports would slow down the first steps, and
with them the speed that a short run measures (seen: by a fifth over 9 s on two cores)."""

END_LIMIT_S = 60.0
"""How long a tracker may take for what is left to do, where it says nothing else."""

ABANDONED_LIMIT_S = 5.0
"""How long one that was abandoned may take to let go of what the next run's will use."""


@dataclass(frozen=True)
class Tracked:
    """A run, as its tracker is told of it.

    Attributes:
        run_dir: Where its files are.
        config: The configuration, resolved.
        choices: The option chosen in each group.
        metric: Name of the task's metric, a key of the lines of `metrics.jsonl`.
        step: Optimizer steps done before; 0 for a run from its beginning.
        resumed: Whether it goes on with a run that is there, maybe from step 0.
    """

    run_dir: Path
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    metric: str
    step: int = 0
    resumed: bool = False

    @property
    def name(self) -> str | None:
        """What the user calls the run; in a sweep, with the job's number."""
        given = self.config.get("name")
        if given is None:
            return None
        return f"{given}/{self.run_dir.name}" if self.sweep else str(given)

    @property
    def tags(self) -> list[str]:
        """The user's own."""
        return [str(tag) for tag in self.config.get("tags") or []]

    @property
    def described(self) -> str:
        """What the run is, and the name of its directory."""
        groups = ["schedule", "model", "data"]
        groups += ["local"] if self.choices.get("schedule") in LOCAL else []
        said = [self.choices[group] for group in groups if group in self.choices]
        known = ((key, self.config.get(key)) for key in ("gpus", "seed"))
        said += [f"{key}={value}" for key, value in known if value is not None]
        return f"{' '.join(said)} ({self.run_dir.name})"

    @property
    def sweep(self) -> str | None:
        """The sweep that the run belongs to: the last two names of its folder, DATE/TIME."""
        for folder in list(self.run_dir.parents)[:2]:  # a `hydra.sweep.subdir` may have a slash
            if (folder / "multirun.yaml").exists():
                return sweep_name(folder)
        return None


def sweep_name(folder: Path) -> str:
    """What the runs of a sweep are grouped by."""
    return f"{folder.parent.name}/{folder.name}"


@dataclass(frozen=True)
class Moment:
    """When something was measured; a tracker may hear of it later.

    Attributes:
        unix_s: Seconds since 1970.
        train_s: Seconds since training started, without pauses between processes.
    """

    unix_s: float
    train_s: float


class Tracker(Protocol):
    """Someone who is told how a run goes on, in a thread of its own, in this order.

    It is made before anything is started, from the keys of its configuration group, and refuses
    wrong ones with a ConfigError; nothing may be opened or sent before `start`. What it raises
    later is told once, and the run goes on without it. `limit_s`, where a class has it, is how
    many seconds may pass at the end until it has heard everything; then `abandon`, where it has
    that, is called from another thread, to end at once what would outlive the run.
    """

    def start(self, run: Tracked) -> None:
        """Training is about to start; `config.json` is there."""

    def metrics(self, line: Mapping[str, Any], at: Moment) -> None:
        """A line of `metrics.jsonl`; those of local losses have the module's number."""

    def stages(self, step: int, stages: Sequence[Mapping[str, Any]], at: Moment) -> None:
        """What the stages have been doing lately.

        Args:
            step: Optimizer steps done.
            stages: Of each its index, compute_fraction, aux_fraction, starved_fraction,
                blocked_fraction and memory_bytes; what is not known is None.
            at: When.
        """

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run is over, however it ended, and all its files are there."""

    def sweep(self, folder: Path, name: str) -> None:
        """A sweep is over; `comparison.png` and `comparison.csv` are in its folder.

        A tracker of its own is told this, and nothing else.
        """


class NoTracker:
    """Nobody."""

    def start(self, run: Tracked) -> None: ...  # noqa: D102
    def metrics(self, line: Mapping[str, Any], at: Moment) -> None: ...  # noqa: D102
    def stages(  # noqa: D102
        self, step: int, stages: Sequence[Mapping[str, Any]], at: Moment
    ) -> None: ...
    def end(self, summary: Mapping[str, Any]) -> None: ...  # noqa: D102
    def sweep(self, folder: Path, name: str) -> None: ...  # noqa: D102


class Guarded:
    """A tracker that can neither stop nor delay a run.

    Its calls are put in a queue and made by a thread; only the first and the last one are waited
    for, within limits. A tracker that raises is left out from then on.

    Args:
        tracker: The one that is told.
        name: What it is called in messages.
    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name = tracker, name
        self._limit_s = float(getattr(tracker, "limit_s", END_LIMIT_S))
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._started = threading.Event()
        self._lost = threading.Lock()  # taken once, by the first to find it out

    def start(self, run: Tracked) -> None:
        """Training is about to start; returns when the tracker has started, or is slow."""
        self._tell("start", run)
        self._started.wait(START_LIMIT_S)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`, as it is written."""
        self._tell("metrics", line, Moment(time.time(), line["seconds"]))

    def stages(self, step: int, stages: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """What the stages have been doing lately, after so much training; see `Tracker.stages`."""
        self._tell("stages", step, stages, Moment(time.time(), seconds))

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run is over; returns when the tracker has heard everything, or is lost."""
        self._tell("end", summary)
        self._finish()

    def sweep(self, folder: Path, name: str) -> None:
        """A sweep is over; returns as `end` does."""
        self._tell("sweep", folder, name)
        self._finish()

    def _tell(self, what: str, *arguments: Any) -> None:
        if not self._lost.locked():
            self._calls.put((what, arguments))
        if not self._thread.ident and not self._lost.locked():
            try:
                self._thread.start()
            except RuntimeError as error:  # the system has no thread left
                self._lose(str(error))
                self._started.set()

    def _finish(self) -> None:
        if not self._thread.ident:
            return
        self._calls.put(None)
        self._thread.join(self._limit_s)
        if self._thread.is_alive():
            self._lose(f"it is not done {self._limit_s:g} s after the end")
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
            except BaseException as error:  # SystemExit too: it would end this thread unheard
                said = type(error).__name__
                with suppress(Exception):  # it may be unable to say what is wrong
                    said += f": {error}"
                self._lose(said)
                log.debug("tracker=%s", self._name, exc_info=True)
            self._started.set()

    def _lose(self, why: str) -> None:
        if self._lost.acquire(blocking=False):
            said = " ".join(why.split())
            log.warning("tracker=%s is lost: %s; the run goes on without it", self._name, said)


def guarded(name: str, config: Mapping[str, Any]) -> Guarded:
    """The tracker that a configuration names.

    Args:
        name: The option chosen.
        config: The keys of the group.

    Raises:
        ConfigError: It cannot be made, or is no tracker.
    """
    tracker = make("tracker", config)
    names = ("start", "metrics", "stages", "end", "sweep")
    remedy = f"see {Tracker.__module__}.Tracker"
    require("tracker._target_", config["_target_"], tracker, names, remedy)
    return Guarded(tracker, name)


def line_scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl`: `test/accuracy`, `module_3/train/loss`.

    The learning rate is the same for all modules, and told of the model's own head alone.
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
    """Of each stage, `stage_0/compute_fraction` and so on; and `pipeline/bubble_fraction`.

    Replicas but the first have their number in the name, as in `stage_0_replica_1`. The bubble is
    the share of the stages' time in which they waited, as in `summary.json`.
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
    """Pictures of what a run has learnt, which it leaves at its end."""
    return sorted((run_dir / "samples").glob("*.png"))


def tree(value: Any) -> Any:
    """What JSON can say as dictionaries alone, keys of lists being their indices.

    A list of words is one string, and what is not known is left out.
    """
    if isinstance(value, list):
        if not any(isinstance(inner, Mapping | list) for inner in value):
            return ", ".join(str(inner) for inner in value)
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        return {str(key): tree(inner) for key, inner in value.items() if inner is not None}
    return value


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree as pairs: `stages.0.compute_fraction`."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        below = isinstance(inner, Mapping)
        found |= flat(inner, f"{prefix}{key}.") if below else {prefix + key: inner}
    return found
