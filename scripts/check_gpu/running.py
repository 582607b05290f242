"""Runs the commands of the check's steps within time limits."""

import json
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from ppll_cli.config.settings import usable_cores
from scripts.benchmarks.session import Session, ppll_run
from scripts.check_gpu.report import Outcome, Report, failed_tests, skipped, verdict

STOP_S = 15.0
"""Seconds after SIGTERM within which a run must save a checkpoint and end."""

LEAST_S = 8.0
"""Seconds that must be left of the check's time for another step to begin."""


@dataclass(frozen=True)
class Ended:
    """The result of a command.

    Attributes:
        status: The exit status; None if the command had to be killed.
        late: Whether the time limit was exceeded, so that the command got SIGTERM.
    """

    status: int | None
    late: bool
    output: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """The settings of a check, and functions that its steps share.

    Attributes:
        quick: Whether models are tiny and runs have few steps, to test the check itself.
        work: A folder for runs and data.
        limit_s: Time limit of the whole check, in seconds.
        patience: Factor for the time limits of single steps.
    """

    report: Report
    cuda: bool
    quick: bool
    work: Path
    limit_s: float
    patience: float = 1.0

    def left_s(self) -> float:
        """Return the seconds that are left for the whole check."""
        return self.limit_s - self.report.passed_s

    def limited(self, limit_s: float) -> float:
        """Return the time limit of a step in seconds, at most what the whole check has left."""
        return min(self.patience * limit_s, self.left_s())

    def transport(self) -> list[str]:
        """Return `transport.ipc=false` if the probe could not use CUDA IPC, else no override."""
        probe = self.report.folder / "probe.json"
        facts = json.loads(probe.read_text()) if self.cuda and probe.exists() else []
        works = any(fact["fact"] == "shared_events" and fact["right"] for fact in facts)
        return ["transport.ipc=false"] if facts and not works else []

    def folder(self, name: str) -> Path:
        """Return the run directory of the run with this name."""
        return self.work / "runs" / file_name(name)

    def session(self, name: str, command: Sequence[str], **environment: str) -> Session:
        """Start a command in its own session, with its output in a file in `work`."""
        return Session(command, self.work / f"{file_name(name)}.out", environment)

    def command(
        self,
        name: str,
        command: Sequence[str],
        limit_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command. After the time limit, send SIGTERM, and kill it if it does not end."""
        with self.session(name, command, **(environment or {})) as session:
            status = session.wait(self.limited(limit_s))
            late = status is None
            if late:
                session.signal(signal.SIGTERM, session.pid)
                status = session.wait(STOP_S)
        return Ended(status, late, session.printed())


class SkippedError(Exception):
    """Raised when a step cannot run or finish. Its arguments are those of `skipped`."""


class Step(Protocol):
    """A step of the check."""

    @property
    def name(self) -> str:
        """Name of the step in the table."""
        ...

    def act(self, check: Check) -> Outcome:
        """Run the step, and return its outcome."""
        ...


@dataclass(frozen=True)
class Train:
    """A step that runs ppll-run, which must end with status 0.

    Attributes:
        name: Name of the step. Steps that compare runs refer to it.
        stops: Whether the run can end soon after SIGTERM. A run that compiles its networks cannot.
    """

    name: str
    overrides: Sequence[str]
    limit_s: float = 80.0
    environment: Mapping[str, str] = field(default_factory=dict)
    stops: bool = True

    def act(self, check: Check) -> Outcome:
        """Train. A run that is too slow is stopped by SIGTERM, and its step is "skipped".

        The step fails if the run ignores SIGTERM although `stops` is true.
        """
        folder = check.folder(self.name)
        command = ppll_run(*self.overrides, *check.transport(), f"hydra.run.dir={folder}")
        ended = check.command(self.name, command, self.limit_s, self.environment)
        if ended.late and (ended.status == 128 + signal.SIGTERM or not self.stops):
            return skipped("out of time, still training", ended.output)
        facts = figures(folder)
        return verdict(ended.status == 0, ended.output, status=ended.status, **facts)


@dataclass(frozen=True)
class Program:
    """A step that runs a Python program, which must end with status 0.

    The output is appended to the file `log` in the report's folder. If `log` is "", there is no
    file.
    """

    name: str
    arguments: Sequence[str]
    limit_s: float
    log: str = ""

    def act(self, check: Check) -> Outcome:
        """Run the program. The step is "skipped" if the time ends before any test has failed."""
        ended = check.command(self.name, [sys.executable, *self.arguments], self.limit_s)
        if self.log:
            with (check.report.folder / self.log).open("a") as log:
                log.write(f"===== {self.name}\n{ended.output}\n")
        if ended.late and not failed_tests(ended.output):
            return skipped("out of time", ended.output)
        last = (ended.output.strip().splitlines() or [""])[-1]
        return verdict(ended.status == 0, ended.output, status=ended.status, last=last)


def run_steps(check: Check, steps: Sequence[Step], width: int) -> None:
    """Run steps, `width` at a time. A step that raises an exception has failed."""

    def act(step: Step) -> None:
        start_s = monotonic()
        if check.left_s() < LEAST_S:
            outcome = skipped("no time left")
        else:
            try:
                outcome = step.act(check)
            except SkippedError as error:
                outcome = skipped(*error.args)
            except Exception as error:
                outcome = verdict(False, repr(error), reason=repr(error))
        check.report.add(step.name, replace(outcome, seconds=monotonic() - start_s))

    with ThreadPoolExecutor(width) as pool:
        list(pool.map(act, steps))


def file_name(name: str) -> str:
    """Return a step's name without characters that Hydra or a file system interprets."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


def figures(folder: Path) -> dict[str, Any]:
    """Return the known facts from a run's `summary.json`."""
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
    return {key: value for key, value in found.items() if _is_known(value)}


def _is_known(value: Any) -> bool:
    return any(each is not None for each in (value if isinstance(value, list) else [value]))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file; None if it cannot be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content


def usable_width(cuda: bool) -> int:
    """Return how many runs, of two workers each, this machine can run at the same time."""
    return max(1, min(5 if cuda else 2, usable_cores() // 3))
