"""`scripts/benchmark accuracy`: what each local method learns, and what it costs.

ResNet-20, cut into 2, 4 and 8 modules, on a third of Fashion-MNIST's training set, so that all rows
take about an hour on two cores (`--long` takes the whole set). Every row has the same budget. The
last module always has a residual unit, and not the head alone, which no local loss prepares for.
A row is trained under `ll`, which learns what `ppll` learns, bit for bit, and so several rows can
be trained beside one another. Speed and memory come from a short run under `ppll` on two stages,
one after another and with nothing beside it. Every worker has one thread; because that is not all
that a machine can give back-propagation, `bp` stands there with all of them as well.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ppll_cli.benchmarks.runs import Results, machine, run
from ppll_cli.settings import usable_cores

FOLDER = Path("outputs/benchmark")
COMMON = ["model=resnet32", "model.depth=20", "data=fashion_mnist", "batch_size=64", "seed=0"]
COMMON += ["optim=sgd", "optim.lr=0.05", "optim.schedule=cosine", "eval_every=1000"]
COMMON += ["transport=ring"]
METHODS = {
    "greedy": ["local=greedy"],
    "dgl": ["local=dgl"],
    "predsim": ["local=predsim"],
    "infopro": ["local=infopro"],
    "auglocal": ["local=auglocal"],
    "fba off": ["local=fba"],
    "fba on": ["fba=on"],
}
MODULES = {
    2: ["layer2.1"],
    4: ["layer1.2", "layer2.1", "layer3.1"],
    8: [f"layer{unit}" for unit in ("1.0", "1.1", "1.2", "2.1", "2.2", "3.1", "3.2")],
}
"""By how many modules there are, the units that start the second to the last."""

SHORT = ["epochs=1", "data.val_fraction=0.667", "data.eval_limit=10000"]
LONG = ["epochs=20"]
SPEED_STEPS = 60


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: Key of `METHODS`, or bp.
        modules: How many.
        overrides: What it is trained with; empty where another row is the same training.
        speed: What its speed and memory are measured with.
    """

    method: str
    modules: int
    overrides: tuple[str, ...]
    speed: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique among the rows."""
        return f"{self.method} {self.modules}"


def rows(budget: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """The rows of the table: back-propagation, and every method with every number of modules."""
    trained = [*COMMON, *budget]
    short = [*trained, f"max_steps={SPEED_STEPS}", "data.eval_limit=64"]
    found = []
    if "bp" in methods:
        one, all_threads = (
            ["schedule=bp", "gpus=1", f"threads={threads}"] for threads in (1, usable_cores())
        )
        found.append(Row("bp", 1, (*trained, *one), (*short, *one)))
        found.append(Row("bp, all threads", 1, (), (*short, *all_threads)))
    for method, choice in METHODS.items():
        for modules, cuts in MODULES.items() if method in methods else ():
            case = [*choice, f"local.cuts=[{','.join(cuts)}]", "threads=1"]
            sequential = (*trained, "schedule=ll", "gpus=1", *case)
            pipelined = (*short, "schedule=ppll", "gpus=2", *case)
            found.append(Row(method, modules, sequential, pipelined))
    return found


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark accuracy", description=__doc__)
    parser.add_argument("--long", action="store_true", help="20 epochs of the whole training set")
    parser.add_argument("--jobs", type=int, help="rows trained beside one another (default: cores)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=["bp", *METHODS],
        default=["bp", *METHODS],
        help="only these",
    )
    parser.add_argument("--skip", choices=["train", "speed"], help="leave one half out")
    options = parser.parse_args(arguments)
    console = Console()
    table = rows(LONG if options.long else SHORT, options.methods)
    results = Results(FOLDER / "accuracy.json")
    jobs = options.jobs or (1 if machine()["gpus"] else usable_cores())

    def train(row: Row) -> None:
        _measure(results, f"{row.name} trained", row.overrides, _learnt, console.print)

    if options.skip != "train":
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(train, [row for row in table if row.overrides]))
    if options.skip != "speed":
        for row in table:
            _measure(results, f"{row.name} speed", row.speed, _cost, console.print)
    text = markdown(results, table)
    (FOLDER / "accuracy.md").write_text(text)
    console.print(text, markup=False)


def _measure(
    results: Results,
    name: str,
    overrides: Sequence[str],
    read: Callable[[dict[str, Any]], dict[str, Any]],
    say: Callable[[str], None],
) -> None:
    if results.find(name, overrides) is None:
        summary = run(overrides, FOLDER / "accuracy" / name.replace(",", "").replace(" ", "-"))
        results.add(name, overrides, {**read(summary), "git_commit": summary["git_commit"]})
        say(f"{name}: {read(summary)}")


def _learnt(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": summary["test"]["accuracy"],
        "loss": summary["test"]["loss"],
        "steps": summary["steps"],
        "module_accuracies": [module["test"]["accuracy"] for module in summary["per_module"]],
        "params": sum(module["params"] for module in summary["per_module"]),
        "aux_params": sum(module["aux_params"] for module in summary["per_module"]),
        "flops": sum(module["flops"] for module in summary["per_module"]),
        "aux_flops": sum(module["aux_flops"] for module in summary["per_module"]),
    }


def _cost(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "samples_per_second": summary["train"]["samples_per_second"],
        "peak_memory_bytes": [stage["peak_memory_bytes"] for stage in summary["stages"]],
        "bubble_fraction": summary["pipeline"]["bubble_fraction"],
        "bytes_sent": [edge["bytes_sent"] for edge in summary["edges"]],
    }


def markdown(results: Results, table: Sequence[Row]) -> str:
    """The table of what has been measured."""
    lines = [
        "| method | modules | test accuracy | auxiliary parameters | auxiliary FLOPs | samples/s |"
        " peak memory per stage, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        learnt = results.find(f"{row.name} trained", row.overrides) or {}
        cost = results.find(f"{row.name} speed", row.speed) or {}
        cells = [
            row.method,
            str(row.modules),
            f"{learnt['accuracy']:.4f}" if learnt else "",
            f"{learnt['aux_params']:,}" if learnt else "",
            f"{learnt['aux_flops'] / learnt['flops']:.0%} of the backbone" if learnt else "",
            f"{cost['samples_per_second']:.0f}" if cost else "",
            " / ".join(_megabytes(size) for size in cost.get("peak_memory_bytes", [])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.0f}"
