"""Runs that the tables of a benchmark are made of: each is made once, and what it found is kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.runs import Results, run

FOLDER = Path("outputs/benchmark")

Summary = Mapping[str, Any]
"""What `summary.json` of a run holds."""


@dataclass(frozen=True)
class Trial:
    """A run of ppll-run. Rows of a table may share it.

    Attributes:
        name: Under which its result is kept, unique in the benchmark.
        overrides: What ppll-run is given.
    """

    name: str
    overrides: tuple[str, ...]


class Trials:
    """The trials of a benchmark; a benchmark that was stopped goes on where it was.

    Results are in `outputs/benchmark/NAME.json`, run directories in `outputs/benchmark/NAME/`.

    Args:
        benchmark: Its name.
        say: Told what each trial found.
    """

    def __init__(self, benchmark: str, say: Callable[[str], None]) -> None:
        self._results = Results(FOLDER / f"{benchmark}.json")
        self._folder, self._say = FOLDER / benchmark, say

    def make(
        self,
        trials: Iterable[Trial],
        read: Callable[[Summary], dict[str, Any]],
        jobs: int = 1,
    ) -> None:
        """Run those that are missing.

        Args:
            trials: Which; those named twice are run once.
            read: What is kept of a summary.
            jobs: How many run beside one another.

        Raises:
            RunFailedError: One did not complete; those that ran beside it have ended.
        """

        def make(trial: Trial) -> None:
            if self.find(trial) is None:
                folder = trial.name.replace(",", "").replace(" ", "-")
                summary = run(trial.overrides, self._folder / folder)
                found = read(summary)
                row = {**found, "git_commit": summary["git_commit"]}
                self._results.add(trial.name, trial.overrides, row)
                self._say(f"{trial.name}: {found}")

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(make, dict.fromkeys(trials)))

    def find(self, trial: Trial) -> dict[str, Any] | None:
        """What was found, null where it has not been run."""
        return self._results.find(trial.name, trial.overrides)


def learnt(summary: Summary) -> dict[str, Any]:
    """What a run reached on the test part, and what its networks cost."""
    modules = summary["per_module"]
    counted = ("params", "aux_params", "flops", "aux_flops")
    return {
        **summary["test"],
        "steps": summary["steps"],
        "module_tests": [module["test"] for module in modules],
        **{key: sum(module[key] for module in modules) for key in counted},
    }


def cost(summary: Summary) -> dict[str, Any]:
    """What a run took, in its steady state."""
    stages = summary["stages"]
    return {
        "samples_per_second": summary["train"]["samples_per_second"],
        "peak_memory_bytes": [stage["peak_memory_bytes"] for stage in stages],
        "aux_fraction": [stage["aux_fraction"] for stage in stages],
        "bubble_fraction": summary["pipeline"]["bubble_fraction"],
        "bytes_sent": [edge["bytes_sent"] for edge in summary["edges"]],
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def megabytes(sizes: Iterable[int | None]) -> str:
    """Of each stage, as a cell."""
    return " / ".join("?" if size is None else f"{size / 1e6:.0f}" for size in sizes)
