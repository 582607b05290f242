"""Makes the runs for the tables of a benchmark, each once, and keeps their results."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ppll_cli.config.settings import usable_cores
from scripts.benchmarks.runs import Results, machine, run

FOLDER = Path("outputs/benchmark")

Summary = Mapping[str, Any]

Found = Mapping[str, Any]

Reader = Callable[[Summary, Path], dict[str, Any]]
"""A function that returns the results to keep, given a run's summary and its run directory."""


@dataclass(frozen=True)
class Trial:
    """A run of ppll-run for a benchmark, with a name that is unique in the benchmark."""

    name: str
    overrides: tuple[str, ...]


class Trials:
    """The trials of a benchmark. A benchmark that was stopped continues with the missing trials.

    If it was stopped by Ctrl-C during a training, it also continues this training.

    Results are in `outputs/benchmark/NAME.json`, run directories in `outputs/benchmark/NAME/`.
    """

    def __init__(self, benchmark: str, say: Callable[[str], None]) -> None:
        self._results = Results(FOLDER / f"{benchmark}.json")
        self._folder, self._say = FOLDER / benchmark, say

    def make(
        self,
        trials: Iterable[Trial],
        read: Reader,
        jobs: int = 1,
        continues: bool = False,
    ) -> None:
        """Run the trials that have no result yet, at most `jobs` at a time; run equal trials once.

        `continues` says whether interrupted runs are resumed; otherwise they start again.

        Raises:
            RunFailedError: A run did not complete. All other runs have ended.
        """

        def make(trial: Trial) -> None:
            if self.find(trial) is None:
                folder = self._folder / trial.name.replace(",", "").replace(" ", "-")
                summary = run(trial.overrides, folder, continues)
                found = read(summary, folder)
                row = {**found, "git_commit": summary["git_commit"]}
                self._results.add(trial.name, trial.overrides, row)
                self._say(f"{trial.name}: {found}")

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(make, dict.fromkeys(trials)))

    def train(self, rows: Iterable[Sequence[Trial]], read: Reader, jobs: int | None) -> None:
        """Run the trainings of rows; each row has one trial per seed.

        All rows of one seed are trained before the next seed. `jobs` trials run at the same time;
        None for the number of cores, or 1 if there is a GPU.
        """
        by_seed = zip(*(row for row in rows if row), strict=True)
        trials = [trial for seed in by_seed for trial in seed]
        jobs = jobs or (1 if machine()["gpus"] else usable_cores())
        self.make(trials, read, jobs, continues=True)

    def find(self, trial: Trial) -> dict[str, Any] | None:
        """Return the results of a trial; None if it must be run."""
        return self._results.find(trial.name, trial.overrides)


def add_options(
    parser: argparse.ArgumentParser,
    methods: Sequence[str],
    modules: Sequence[int],
    seeds: Sequence[int],
) -> None:
    """Add options that select trials; their defaults are `methods`, `modules` and `seeds`."""
    parser.add_argument(
        "--jobs", type=int, help="rows trained at the same time (default: one per core; 1 on a GPU)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=seeds, help="seeds of the trainings"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=methods, default=methods, help="measure only these methods"
    )
    parser.add_argument(
        "--modules",
        type=int,
        nargs="+",
        choices=modules,
        default=modules,
        help="measure only these numbers of modules, besides bp",
    )
    parser.add_argument(
        "--skip",
        choices=["train", "speed"],
        help="leave out the trainings or the measurements of speed",
    )


def results_of(summary: Summary, run_dir: Path) -> dict[str, Any]:
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


def averaged(found: Iterable[Found | None], metric: str, form: str) -> str:
    """Return a cell with the mean of a metric and, for several seeds, its standard deviation.

    `found` has the results of each seed; None if a seed was not trained. `form` formats a number.
    """
    values = [each[metric] for each in found if each]
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}" if values else ""


def paired(found: Iterable[Found | None], bp: Iterable[Found | None]) -> list[tuple[Found, Found]]:
    """Return the results of each seed with those of bp, for the seeds that have both."""
    pairs = zip(found, bp, strict=False)  # a row that is not trained has no results
    return [(each, other) for each, other in pairs if each and other]


def difference(
    found: Iterable[Found | None], bp: Iterable[Found | None], metric: str, form: str
) -> str:
    """Return a cell with a metric minus that of bp with the same seed, averaged over seeds."""
    values = [each[metric] - other[metric] for each, other in paired(found, bp)]
    return f"{mean(values):+{form}}" if values else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def megabytes(sizes: Iterable[int | None]) -> str:
    """Return a table cell with the sizes of all stages in MB; `sizes` are in bytes."""
    return " / ".join("?" if size is None else f"{size / 1e6:.0f}" for size in sizes)
