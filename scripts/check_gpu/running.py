"""Running commands within the time that the check has, and training runs among them."""

import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from scripts.benchmarks.session import Session, ppll_run
from scripts.check_gpu.report import Outcome, Report, skipped, verdict

STOP_S = 15.0
"""A run that is told to stop ends its batch and saves a checkpoint; after this time it hangs."""

LEAST_S = 8.0
"""A step is not begun with less time left than this."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Its exit status; None if it had to be killed.
        late: Its time ran out, and it was told to stop.
        output: What it printed.
        seconds: How long it took.
    """

    status: int | None
    late: bool
    output: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """Where and how the steps of a check run.

    Attributes:
        report: Takes the outcomes.
        cuda: Train on CUDA, else on the CPU.
        quick: Tiny models and few steps, to try the check itself.
        work: A folder for runs and data.
        limit_s: Seconds that the check has in all.
        patience: Multiplies the limits of single steps.
    """

    report: Report
    cuda: bool
    quick: bool
    work: Path
    limit_s: float
    patience: float = 1.0

    def left_s(self) -> float:
        """Seconds that are left of the whole check."""
        return self.limit_s - self.report.passed_s

    def limited(self, limit_s: float) -> float:
        """A step's limit in seconds: its own, or what is left of the whole check."""
        return min(self.patience * limit_s, self.left_s())

    def folder(self, name: str) -> Path:
        """The run directory of the run with this name."""
        return self.work / "runs" / file_name(name)

    def session(self, name: str, command: Sequence[str], **environment: str) -> Session:
        """Start a command; what it prints goes to a file in `work`."""
        return Session(command, self.work / f"{file_name(name)}.out", environment)

    def command(
        self,
        name: str,
        command: Sequence[str],
        limit_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command; when its time has run out, ask it to stop, and kill it if it does not."""
        start_s = monotonic()
        with self.session(name, command, **(environment or {})) as session:
            status = session.wait(self.limited(limit_s))
            late = status is None
            if late:
                session.signal(signal.SIGTERM, session.pid)
                status = session.wait(STOP_S)
        return Ended(status, late, session.printed(), monotonic() - start_s)


class Step(Protocol):
    """Something that a check finds out."""

    @property
    def name(self) -> str:
        """How the table names it."""
        ...

    def act(self, check: Check) -> Outcome:
        """Find it out."""
        ...


@dataclass(frozen=True)
class Train:
    """A run of ppll-run that has to end with status 0.

    Attributes:
        name: Of the step, and of the run for steps that compare runs.
        overrides: For ppll-run.
        limit_s: How long it may take.
        environment: Variables for this run.
        stops: It ends soon after SIGTERM. A run that compiles does not.
    """

    name: str
    overrides: Sequence[str]
    limit_s: float = 80.0
    environment: Mapping[str, str] = field(default_factory=dict)
    stops: bool = True

    def act(self, check: Check) -> Outcome:
        """Train. A run that is slow is skipped; one that does not even stop has failed."""
        folder = check.folder(self.name)
        command = ppll_run(*self.overrides, f"hydra.run.dir={folder}")
        ended = check.command(self.name, command, self.limit_s, self.environment)
        if ended.late and (ended.status == 128 + signal.SIGTERM or not self.stops):
            return skipped("out of time, still training", ended.output, ended.seconds)
        facts = figures(folder)
        return verdict(ended.status == 0, ended.output, ended.seconds, status=ended.status, **facts)


@dataclass(frozen=True)
class Program:
    """A Python module that has to end with status 0.

    Attributes:
        name: Of the step.
        arguments: For the interpreter.
        limit_s: How long it may take.
        log: A file in the report's folder to which what it prints is appended.
    """

    name: str
    arguments: Sequence[str]
    limit_s: float
    log: str = ""

    def act(self, check: Check) -> Outcome:
        """Run it; one whose time runs out is skipped."""
        ended = check.command(self.name, [sys.executable, *self.arguments], self.limit_s)
        if self.log:
            with (check.report.folder / self.log).open("a") as log:
                log.write(f"===== {self.name}\n{ended.output}\n")
        if ended.late:
            return skipped("out of time", ended.output, ended.seconds)
        last = (ended.output.strip().splitlines() or [""])[-1]
        return verdict(
            ended.status == 0, ended.output, ended.seconds, status=ended.status, last=last
        )


def run_steps(check: Check, steps: Sequence[Step], width: int) -> None:
    """Run steps, so many at a time; an exception in one of them is that step's failure."""

    def act(step: Step) -> None:
        if check.left_s() < LEAST_S:
            outcome = skipped("no time left")
        else:
            try:
                outcome = step.act(check)
            except Exception as error:
                outcome = verdict(False, repr(error), reason=repr(error))
        check.report.add(step.name, outcome)

    with ThreadPoolExecutor(width) as pool:
        list(pool.map(act, steps))


def file_name(name: str) -> str:
    """A step's name without what Hydra or a file system reads another way."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


def figures(folder: Path) -> dict[str, Any]:
    """What the table shows of a run's `summary.json`."""
    summary = read_json(folder / "summary.json") or {}
    stages = summary.get("stages") or []
    found = {
        "samples_per_second": (summary.get("train") or {}).get("samples_per_second"),
        "emulated": summary.get("emulated") or None,
        "test": summary.get("test"),
        "bubble_fraction": (summary.get("pipeline") or {}).get("bubble_fraction"),
    }
    for key in ("compute", "aux", "starved", "blocked"):
        found[f"{key}_fraction"] = [stage.get(f"{key}_fraction") for stage in stages]
    found["peak_memory_bytes"] = [stage.get("peak_memory_bytes") for stage in stages]
    return {
        key: value for key, value in found.items() if value not in (None, []) and any_known(value)
    }


def any_known(value: Any) -> bool:
    """Whether a value, or one of a list's, is known."""
    return not isinstance(value, list) or any(each is not None for each in value)


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content


def usable_width(cuda: bool) -> int:
    """How many runs of two workers, a parent and a fork server this machine takes at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(1, min(5 if cuda else 2, cores // 3))
