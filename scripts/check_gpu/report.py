"""Records and prints the results of a check's steps."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

LOGGED_CHARACTERS = 6000
"""Number of characters that `jobs.log` keeps from the end of a failed step's output."""

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


@dataclass(frozen=True)
class Outcome:
    """The result of a step.

    Attributes:
        state: "ok", "FAILED" or "skipped".
        facts: Measured facts as JSON values. For a skipped step, `reason` says why.
        output: The output of the step's command.
    """

    state: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    seconds: float = 0.0


def verdict(right: bool, output: str = "", **facts: Any) -> Outcome:
    """Return the outcome of a step that ran to its end: "ok" if `right`, else "FAILED".

    A failed step without a fact `reason` gets the reason from `output`.
    """
    if not right and not facts.get("reason"):
        facts["reason"] = _reasons(output)
    return Outcome("ok" if right else "FAILED", facts, output)


def _reasons(output: str) -> list[str]:
    lines = output.strip().splitlines()
    messages = [line for line in lines if line.startswith("ppll-run: ")]
    return failed_tests(output) or messages[-1:] or lines[-1:]


def failed_tests(output: str) -> list[str]:
    """Return the lines about failed tests in pytest's summary or, without one, in its progress."""
    summary, progress = re.compile(r"FAILED |ERROR "), re.compile(r"\[gw\d+\].*\] (FAILED |ERROR )")
    lines = output.splitlines()
    return [line for line in lines if summary.match(line)] or [
        line for line in lines if progress.match(line)
    ]


def skipped(reason: str, output: str = "") -> Outcome:
    """Return the outcome "skipped" of a step that could not run or finish.

    A check with skipped steps can still succeed.
    """
    return Outcome("skipped", {"reason": reason}, output)


class Report:
    """Writes outcomes to files in `folder`, and prints them. Several threads may use it.

    All files are complete after each outcome, because the check itself may be killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        self._started_s = monotonic()
        self._lock = Lock()
        (folder / "jobs.log").write_text("")

    @property
    def passed_s(self) -> float:
        """Seconds since the start of the check."""
        return monotonic() - self._started_s

    def add(self, name: str, outcome: Outcome) -> None:
        """Record and print the outcome of a step."""
        failed = outcome.state == "FAILED"
        said = outcome.output[-LOGGED_CHARACTERS:] if failed else outcome.output[-700:]
        with self._lock:
            self.outcomes[name] = outcome
            with (self.folder / "jobs.log").open("a") as log:
                log.write(f"\n===== {name}: {outcome.state} {dict(outcome.facts)}\n{said}\n")
            results = {each: _plain(known) for each, known in self.outcomes.items()}
            (self.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            self.table()
            print(f"[{self.passed_s:4.0f} s] {_line(name, outcome)}", flush=True)  # noqa: T201

    def failed(self) -> list[str]:
        """Return the names of the failed steps."""
        return [name for name, each in self.outcomes.items() if each.state == "FAILED"]

    def table(self) -> str:
        """Return a table of all steps with totals, and write it to `table.txt`."""
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
    if isinstance(value, list):
        return "/".join(map(_short, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value >> 20}MiB" if isinstance(value, int) and value >= 1 << 24 else str(value)[:160]
