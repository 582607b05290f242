"""`scripts/benchmark accuracy`: test accuracy and cost of each local method.

Each method trains ResNet-20, cut into 2, 4 and 8 modules, on a third of Fashion-MNIST's training
set. All rows take a quarter of an hour on two cores; `--long` uses the whole training set for 20
epochs. All rows have the same number of training steps. The last module always has a residual unit.
A last module with only the head would do worse, because no local loss trains features for it.
Accuracy is measured under `schedule=ll`, which gives bit-identical weights to `ppll` but uses one
process, so several rows are trained at the same time. Speed and memory are measured in short runs
under `ppll` on two stages, one run at a time. Each worker has one thread. Back-propagation could
use more, so the table also has a row for `bp` with all threads.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from ppll_cli.config.settings import usable_cores
from scripts.benchmarks.runs import machine
from scripts.benchmarks.trials import FOLDER, Trial, Trials, cost, learnt, megabytes
from scripts.benchmarks.trials import table as markdown_table

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
"""For each number of modules, the first units of all modules but the first."""

SHORT = ["epochs=1", "data.val_fraction=0.667", "data.eval_limit=10000"]
LONG = ["epochs=20"]
SPEED_STEPS = 60


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        method: Key of `METHODS`, "bp" or "bp, all threads".
        modules: Number of modules.
        trained: The run that measures accuracy; None if another row has the same training.
        speed: The run that measures speed and memory.
    """

    method: str
    modules: int
    trained: Trial | None
    speed: Trial


def _row(method: str, modules: int, trained: Sequence[str] | None, speed: Sequence[str]) -> Row:
    """Make a row from the overrides of its two runs."""
    name = f"{method} {modules}"
    learning = None if trained is None else Trial(f"{name} trained", tuple(trained))
    return Row(method, modules, learning, Trial(f"{name} speed", tuple(speed)))


def rows(budget: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """Return the rows: back-propagation, and each method with each number of modules."""
    trained = [*COMMON, *budget]
    short = [*trained, f"max_steps={SPEED_STEPS}", "data.eval_limit=64"]
    found = []
    if "bp" in methods:
        one, all_threads = (
            ["schedule=bp", "gpus=1", f"threads={threads}"] for threads in (1, usable_cores())
        )
        found.append(_row("bp", 1, [*trained, *one], [*short, *one]))
        found.append(_row("bp, all threads", 1, None, [*short, *all_threads]))
    for method, choice in METHODS.items():
        for modules, cuts in MODULES.items() if method in methods else ():
            case = [*choice, f"local.cuts=[{','.join(cuts)}]", "threads=1"]
            sequential = [*trained, "schedule=ll", "gpus=1", *case]
            pipelined = [*short, "schedule=ppll", "gpus=2", *case]
            found.append(_row(method, modules, sequential, pipelined))
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the trials without results, write the table, and print it."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark accuracy", description=__doc__)
    parser.add_argument("--long", action="store_true", help="20 epochs of the whole training set")
    parser.add_argument(
        "--jobs", type=int, help="rows trained at the same time (default: the number of cores)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=["bp", *METHODS],
        default=["bp", *METHODS],
        help="train only these methods",
    )
    parser.add_argument(
        "--skip",
        choices=["train", "speed"],
        help="leave out the trainings or the measurements of speed",
    )
    options = parser.parse_args(arguments)
    console = Console()
    table = rows(LONG if options.long else SHORT, options.methods)
    trials = Trials("accuracy", console.print)
    jobs = options.jobs or (1 if machine()["gpus"] else usable_cores())
    if options.skip != "train":
        trials.make([row.trained for row in table if row.trained], learnt, jobs)
    if options.skip != "speed":
        trials.make([row.speed for row in table], cost)
    text = markdown(trials, table)
    (FOLDER / "accuracy.md").write_text(text)
    console.print(text, markup=False)


def markdown(trials: Trials, rows: Sequence[Row]) -> str:
    """Return the table of all results so far, in Markdown."""
    columns = ["method", "modules", "test accuracy", "auxiliary parameters", "auxiliary FLOPs"]
    columns += ["samples/s", "peak memory per stage, MB"]
    lines = []
    for row in rows:
        trained = (row.trained and trials.find(row.trained)) or {}
        speed = trials.find(row.speed) or {}
        cells = [
            row.method,
            str(row.modules),
            f"{trained['accuracy']:.4f}" if trained else "",
            f"{trained['aux_params']:,}" if trained else "",
            f"{trained['aux_flops'] / trained['flops']:.0%} of the backbone" if trained else "",
            f"{speed['samples_per_second']:.0f}" if speed else "",
            megabytes(speed.get("peak_memory_bytes", [])),
        ]
        lines.append(cells)
    return markdown_table(columns, lines)
