"""`scripts/benchmark accuracy`: test accuracy and cost of each local method.

Each method trains ResNet-20 in 2, 4 and 8 modules, and ResNet-32 in 16 modules, on a third of
Fashion-MNIST's training set, with three seeds. All rows have equal numbers of training steps. All
rows together take several hours on two cores. `--epochs` trains longer, on the whole training set.

Accuracy is measured under `schedule=ll`. Its weights are bit-identical to those of `ppll`, and it
needs one process, so several rows are trained at the same time. Speed and memory are measured in
short runs under `ppll` on two stages, one run at a time, with one thread per worker. For a fair
comparison, there are rows for `bp` with all threads, for `bp` with two replicas (data parallelism),
and for `zb_h1`.

"seconds to bp" says how soon a method under `ppll` is at most one percentage point below the final
accuracy of `bp` with the same seed: the number of training samples until then, divided by the
measured speed. Both accuracies are measured on training batches.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from ppll_cli.config.settings import usable_cores
from scripts.benchmarks.trials import (
    FOLDER,
    Found,
    Summary,
    Trial,
    Trials,
    add_options,
    averaged,
    cost,
    difference,
    megabytes,
    paired,
    results_of,
)
from scripts.benchmarks.trials import table as markdown_table

BATCH_SIZE = 64
COMMON = ["model=resnet32", "data=fashion_mnist", f"batch_size={BATCH_SIZE}"]
COMMON += ["optim=sgd", "optim.lr=0.05", "optim.schedule=cosine", "eval_every=1000"]
COMMON += ["transport=ring", "timeline=false"]
MAN = ["local=manpp", "local.loss=dgl"]
METHODS = {
    "greedy": ["local=greedy"],
    "dgl": ["local=dgl"],
    "predsim": ["local=predsim"],
    "infopro": ["local=infopro"],
    "auglocal": ["local=auglocal"],
    "fba off": ["local=fba"],
    "fba on": ["fba=on"],
    "man, dgl": ["local=man", "local.loss=dgl"],
    "man, infopro": ["local=man"],
    "manpp, dgl": MAN,
    "manpp, infopro": ["local=manpp"],
}
VARIANTS = {
    **{f"manpp, dgl, lag {lag}": [*MAN, f"local.lag={lag}"] for lag in (1, 8, 64)},
    "manpp, infopro, weights of infopro": ["local=manpp", "local.weights=[6,0,1,2]"],
    "fba on, normalized": ["fba=on", "fba.normalize=true"],
    "fba on, input": ["fba=on", "fba.join=input"],
    "fba on, probe": ["fba=on", "fba.trains=probe"],
}
"""Other values of methods' options, measured only with `VARIANTS_OF`."""


def _units(*numbers: str) -> list[str]:
    return [f"layer{number}" for number in numbers]


MODULES: dict[tuple[int, int], list[str]] = {
    (20, 2): _units("2.1"),
    (20, 4): _units("1.2", "2.1", "3.1"),
    (20, 8): _units("1.0", "1.1", "1.2", "2.1", "2.2", "3.1", "3.2"),
    (32, 16): _units(*(f"{stage}.{unit}" for stage in (1, 2, 3) for unit in range(5))),
}
"""The first unit of each module except module 0, by depth of the model and number of modules. The
last module is never the head alone, because the features that the head reads would then be trained
only for an auxiliary network. The entry (32, 16) is the partition `man_K16`."""

NUMBERS = [modules for _, modules in MODULES]

VARIANTS_OF = 20, 4  # depth of the model, and number of modules

ALONE = {
    "bp": ["schedule=bp", "gpus=1", "threads=1"],
    "bp, all threads": ["schedule=bp", "gpus=1", f"threads={usable_cores()}"],
    "bp, 2 replicas": ["schedule=bp", "gpus=2", "replicas=2", "threads=1"],
    "zb_h1": ["schedule=zb_h1", "gpus=2", "partition=flops", "threads=1"],
}
"""The rows without a local method. Only `bp` is trained to measure accuracy: the other rows would
learn the same weights, except that BatchNorm may compute its statistics over other samples."""

SHORT = ["epochs=1", "data.val_fraction=0.667", "data.eval_limit=10000", "log_every=25"]
LONG = ["log_every=100"]
SPEED_STEPS = 60


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        method: Key of `METHODS`, `VARIANTS` or `ALONE`.
        modules: Number of modules; 1 for a row of `ALONE`.
        trained: For each seed, the run that measures accuracy; empty for `ALONE` except `bp`.
        speed: The run that measures speed and memory.
    """

    depth: int
    method: str
    modules: int
    trained: tuple[Trial, ...]
    speed: Trial


def rows(
    budget: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    numbers: Sequence[int] = NUMBERS,
) -> list[Row]:
    """Return the rows of each model: back-propagation, and each method with each cut.

    `budget` has the overrides that set the length of the training. "bp" among the methods means the
    rows of `ALONE`. A model without an entry in `MODULES` for one of `numbers` has no rows.
    """
    found = []
    choices = METHODS | VARIANTS
    for depth in dict.fromkeys(depth for depth, k in MODULES if k in numbers):
        model = [*COMMON, *budget, f"model.depth={depth}"]
        for method, alone in ALONE.items() if "bp" in methods else ():
            found.append(_row(depth, method, 1, [*model, *alone], [*model, *alone], seeds))
        for modules in (k for d, k in MODULES if d == depth and k in numbers):
            cuts = f"local.cuts=[{','.join(MODULES[depth, modules])}]"
            names = choices if (depth, modules) == VARIANTS_OF else METHODS
            for method in (name for name in names if name in methods):
                case = [*model, *choices[method], cuts, "threads=1"]
                sequential = [*case, "schedule=ll", "gpus=1"]
                pipelined = [*case, "schedule=ppll", "gpus=2"]
                found.append(_row(depth, method, modules, sequential, pipelined, seeds))
    return found


def _row(
    depth: int,
    method: str,
    modules: int,
    trained: Sequence[str],
    speed: Sequence[str],
    seeds: Sequence[int],
) -> Row:
    name = f"resnet{depth} {method} {modules}"
    learning = tuple(
        Trial(f"{name} seed {seed}", (*trained, f"seed={seed}"))
        for seed in (seeds if method not in ALONE or method == "bp" else ())
    )
    brief = (*speed, "seed=0", f"max_steps={SPEED_STEPS}", "data.eval_limit=64")
    return Row(depth, method, modules, learning, Trial(f"{name} speed", brief))


def training_results(summary: Summary, run_dir: Path) -> dict[str, Any]:
    """Return the results of a training (see `results_of`), and how its accuracy rose.

    `train_accuracy` has a pair for each training line of the model's own head: the number of steps
    done, and the accuracy.
    """
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    rise = [
        [line["step"], line["accuracy"]]
        for line in lines
        if line["split"] == "train" and line["module"] is None
    ]
    return {**results_of(summary, run_dir), "train_accuracy": rise}


def steps_to(rise: Sequence[tuple[int, float]], aim: float) -> int | None:
    """Return the first step at which the mean accuracy of two successive lines reaches `aim`.

    Return None if no such step exists. `rise` has pairs of a step and an accuracy from 0 to 1.
    """
    for before, line in pairwise(rise):
        if (before[1] + line[1]) / 2 >= aim:
            return line[0]
    return None


def seconds_to_bp(pairs: Sequence[tuple[Found, Found]], samples_per_second: float) -> float | None:
    """Return the mean seconds until a method is 1 percentage point below the accuracy of `bp`.

    This means the final accuracy of `bp`. Each pair has the results of a method and of `bp` with
    the same seed. The result is None if a training does not reach this accuracy.
    """
    steps = []
    for found, bp in pairs:
        end = mean(accuracy for _, accuracy in bp["train_accuracy"][-2:])
        steps.append(steps_to(found["train_accuracy"], end - 0.01))
    reached = [step for step in steps if step is not None]
    if len(reached) < len(steps):
        return None
    return mean(reached) * BATCH_SIZE / samples_per_second


def main(arguments: Sequence[str]) -> None:
    """Run the trials that have no results yet; write and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark accuracy", description=__doc__)
    parser.add_argument(
        "--epochs",
        type=int,
        help="epochs of the whole training set (default: one epoch of a third of it)",
    )
    every = ["bp", *METHODS, *VARIANTS]
    add_options(parser, every, NUMBERS, seeds=[0, 1, 2])
    options = parser.parse_args(arguments)
    console = Console()
    course = [f"epochs={options.epochs}", *LONG] if options.epochs else SHORT
    table = rows(course, options.methods, options.seeds, options.modules)
    trials = Trials("accuracy", console.print)
    if options.skip != "train":
        trials.train((row.trained for row in table), training_results, options.jobs)
    if options.skip != "speed":
        trials.make([row.speed for row in table], cost)
    text = markdown(trials, table)
    (FOLDER / "accuracy.md").write_text(text)
    console.print(text, markup=False)


def markdown(trials: Trials, rows: Sequence[Row]) -> str:
    """Return a table in Markdown for each model, with all results so far."""
    found = {row: [trials.find(trial) for trial in row.trained] for row in rows}
    texts = []
    for depth in dict.fromkeys(row.depth for row in rows):
        of_model = [row for row in rows if row.depth == depth]
        bp = next((found[row] for row in of_model if row.method == "bp"), [])
        lines = [_cells(row, found[row], bp, trials.find(row.speed)) for row in of_model]
        texts.append(f"ResNet-{depth}\n\n{markdown_table(COLUMNS, lines)}")
    return "\n".join(texts)


COLUMNS = ["method", "modules", "test accuracy", "difference to bp", "auxiliary parameters"]
COLUMNS += ["auxiliary FLOPs", "samples/s", "peak memory per stage, MB", "seconds to bp"]


def _cells(
    row: Row, found: Sequence[Found | None], bp: Sequence[Found | None], speed: Found | None
) -> list[str]:
    auxiliary = ("", "")
    pairs = paired(found, bp)
    if first := next((each for each in found if each), None):
        share = f"{first['aux_flops'] / first['flops']:.0%} of the backbone"
        auxiliary = f"{first['aux_params']:,}", share
    gap = "" if row.method == "bp" else difference(found, bp, "accuracy", ".4f")
    samples, memory, seconds = "", "", ""
    if speed:
        samples = f"{speed['samples_per_second']:.0f}"
        memory = megabytes(speed["peak_memory_bytes"])
        if pairs and len(pairs) == sum(each is not None for each in found):
            until = seconds_to_bp(pairs, speed["samples_per_second"])
            seconds = "not reached" if until is None else f"{until:.0f}"
    accuracy = averaged(found, "accuracy", ".4f")
    return [row.method, str(row.modules), accuracy, gap, *auxiliary, samples, memory, seconds]
