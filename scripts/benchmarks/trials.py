"""Makes the runs for the tables of a benchmark, each once, and keeps their results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.runs import Results, run

FOLDER = Path("outputs/benchmark")

Summary = Mapping[str, Any]
"""The content of a run's `summary.json`."""


@dataclass(frozen=True)
class Trial:
    """A run of ppll-run for a benchmark. Several rows of a table may share it.

    Attributes:
        name: Name of the result in the file, unique in the benchmark.
    """

    name: str
    overrides: tuple[str, ...]


class Trials:
    """The trials of a benchmark. A benchmark that was stopped continues with the missing trials.

    Results are in `outputs/benchmark/NAME.json`, run directories in `outputs/benchmark/NAME/`.

    Args:
        benchmark: Name of the benchmark.
        say: Prints a text. It is called with the results of each trial.
    """

    def __init__(self, benchmark: str, say: Callable[[str], None]) -> None:
        self._results = Results(FOLDER / f"{benchmark}.json")
        self._folder, self._say = FOLDER / benchmark, say

    def make(
        self,
        trials: Iterable[Trial],
        read: Callable[[Summary, Path], dict[str, Any]],
        jobs: int = 1,
    ) -> None:
        """Run the trials that have no result yet.

        Equal trials are run once, at most `jobs` at the same time. `read` returns the results to
        keep, given a run's summary and its run directory.

        Raises:
            RunFailedError: A run did not complete. No run is in progress any more.
        """

        def make(trial: Trial) -> None:
            if self.find(trial) is None:
                folder = self._folder / trial.name.replace(",", "").replace(" ", "-")
                summary = run(trial.overrides, folder)
                found = read(summary, folder)
                row = {**found, "git_commit": summary["git_commit"]}
                self._results.add(trial.name, trial.overrides, row)
                self._say(f"{trial.name}: {found}")

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(make, dict.fromkeys(trials)))

    def find(self, trial: Trial) -> dict[str, Any] | None:
        """Return the results of a trial; None if it has not been run."""
        return self._results.find(trial.name, trial.overrides)


def learnt(summary: Summary, run_dir: Path) -> dict[str, Any]:
    """Return the test results of a run, and the parameters and FLOPs of its networks."""
    modules = summary["per_module"]
    counted = ("params", "aux_params", "flops", "aux_flops")
    return {
        **summary["test"],
        "steps": summary["steps"],
        "module_tests": [module["test"] for module in modules],
        **{key: sum(module[key] for module in modules) for key in counted},
    }


def cost(summary: Summary, run_dir: Path) -> dict[str, Any]:
    """Return speed, memory, time fractions and sent bytes of a run."""
    stages = summary["stages"]
    return {
        "samples_per_second": summary["train"]["samples_per_second"],
        "peak_memory_bytes": [stage["peak_memory_bytes"] for stage in stages],
        "aux_fraction": [stage["aux_fraction"] for stage in stages],
        "bubble_fraction": summary["pipeline"]["bubble_fraction"],
        "bytes_sent": [edge["bytes_sent"] for edge in summary["edges"]],
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def megabytes(sizes: Iterable[int | None]) -> str:
    """Return a cell with the sizes of all stages in MB, given in bytes."""
    return " / ".join("?" if size is None else f"{size / 1e6:.0f}" for size in sizes)
