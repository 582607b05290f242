"""What a check found, step by step, and the table that comes last."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

LOGGED_CHARACTERS = 6000
"""So much of the end of a step's output is kept in `jobs.log` where the step failed."""

SHOWN = (
    "samples_per_second",
    "emulated",
    "different",
    "largest",
    "starved_fraction",
    "peak_memory_bytes",
    "reason",
    "last",
    "text",
)
"""Facts that the table shows; `results.json` has all."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        state: "ok", "FAILED" or "skipped".
        facts: What it found, as JSON knows it. A step that was skipped gives its `reason`.
        output: What it printed.
        seconds: How long it took.
    """

    state: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    seconds: float = 0.0


def verdict(right: bool, output: str = "", seconds: float = 0.0, **facts: Any) -> Outcome:
    """The outcome of a step that ran to its end."""
    return Outcome("ok" if right else "FAILED", facts, output, seconds)


def skipped(reason: str, output: str = "", seconds: float = 0.0) -> Outcome:
    """The outcome of a step that could not run, or not to its end; it counts for nothing."""
    return Outcome("skipped", {"reason": reason}, output, seconds)


class Report:
    """Keeps the outcomes in files and prints them as they come; steps may end at the same time.

    Args:
        folder: Takes `results.json`, `jobs.log` and `table.txt`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        self._started_s = monotonic()
        self._lock = Lock()
        (folder / "jobs.log").write_text("")

    @property
    def passed_s(self) -> float:
        """Seconds since the check began."""
        return monotonic() - self._started_s

    def add(self, name: str, outcome: Outcome) -> None:
        """Record how a step ended."""
        failed = outcome.state == "FAILED"
        said = outcome.output[-LOGGED_CHARACTERS:] if failed else outcome.output[-700:]
        with self._lock:
            self.outcomes[name] = outcome
            with (self.folder / "jobs.log").open("a") as log:
                log.write(f"\n===== {name}: {outcome.state} {dict(outcome.facts)}\n{said}\n")
            results = {each: _plain(known) for each, known in self.outcomes.items()}
            (self.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            print(f"[{self.passed_s:4.0f} s] {_line(name, outcome)}", flush=True)  # noqa: T201

    def failed(self) -> list[str]:
        """The names of the steps that failed."""
        return [name for name, each in self.outcomes.items() if each.state == "FAILED"]

    def table(self) -> str:
        """All steps, and how many of them passed; it is written to `table.txt` as well."""
        states = [outcome.state for outcome in self.outcomes.values()]
        counts = ", ".join(
            f"{states.count(state)} {word}"
            for state, word in (("ok", "passed"), ("FAILED", "failed"), ("skipped", "skipped"))
        )
        facts = [fact for each in self.outcomes.values() for fact in each.facts.get("facts", [])]
        lines = [f"{fact.pop('fact')}: {_pairs(fact)}" for fact in map(dict, facts)]
        lines += ["", *(_line(name, outcome) for name, outcome in self.outcomes.items())]
        lines += ["", f"{counts} in {self.passed_s:.0f} s"]
        lines += [f"failed: {name}" for name in self.failed()]
        text = "\n".join(lines)
        (self.folder / "table.txt").write_text(text + "\n")
        return text


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {"state": outcome.state, "seconds": round(outcome.seconds, 1), **outcome.facts}


def _pairs(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in facts.items())


def _line(name: str, outcome: Outcome) -> str:
    facts = outcome.facts
    shown = [f"{key}={_short(facts[key])}" for key in SHOWN if facts.get(key) not in (None, [], "")]
    return f"{outcome.state:7} {outcome.seconds:6.1f} s  {name:38} {' '.join(shown)}".rstrip()


def _short(value: Any) -> str:
    """A fact as the table shows it."""
    if isinstance(value, list):
        return "/".join(map(_short, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value >> 20}MiB" if isinstance(value, int) and value >= 1 << 24 else str(value)[:160]
