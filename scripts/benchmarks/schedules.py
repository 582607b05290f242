"""`scripts/benchmark schedules`: speed of each schedule, of this program and of torch.

A ViT and ResNet-32 train on synthetic images of 32 x 32 pixels, in batches of 64, on `--gpus`
stages with one thread each. All contenders of a model are started once and stay alive. In each
round, one contender after the other trains for a few seconds while the rest are idle. The table
shows medians over the rounds.

- `ppll`, `ppll_recover` (with `recover=stage`), `ppll_queue` (with another transport) and `ll`
  train the same modules: the stages that `partition=profile` cuts for `ppll`. For `pp`, `gpipe_m4`
  and similar rows, this partition cuts other stages; `torch_gpipe_m4` has the stages of `gpipe_m4`,
  and so on. `ddp` is torch's `DistributedDataParallel` with its defaults, where each rank trains a
  part of the batch; `bp_replicas` is `schedule=bp` with the same number of replicas.
- `bp` and `ll` have one worker with one thread. On a CPU, `bp_all_threads` uses all threads.
- `bound`: all stages of `ppll` train at the same time, each on its own inputs, and nothing is sent.
  `bound_in_turn`: the same stages train one after another. `ceiling`, the speed of `bound` divided
  by the speed of `bound_in_turn`, is the largest possible speed-up of `ppll` over `ll` on this
  machine's memory system.

For rows of this program, marks follow some batches through the pipeline (see `paced`). The timed
interval begins when a mark reaches the last stage, and ends when a later mark reaches it. The
pipeline is full for the whole interval, unless a schedule such as `gpipe` drains it. For rows of
torch, whole steps between two barriers are timed. The time includes the loading of batches and the
optimizer steps. Only the last rank of torch's pipelines loads its labels before the timed interval.
Torch's ranks are started by this program's fork server, with equal settings of the allocator and of
numerics, and their networks have the same memory layout. Peak memory is measured for each process
in its steady state, minus its memory before the model was built.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from ppll_cli.errors import ConfigError
from ppll_cli.leaves import forkserver
from scripts.benchmarks.contenders import LONG, MODELS, SHORT, Case
from scripts.benchmarks.runs import machine, save, source

RESULT = Path("outputs/benchmark/schedules.json")
RATIOS = {
    "ppll_over_bound": ("ppll", "bound"),
    "ppll_over_torch_gpipe": ("ppll", "torch_gpipe_m4"),
    "ppll_over_torch_1f1b": ("ppll", "torch_1f1b_m4"),
    "ppll_over_ll": ("ppll", "ll"),
    "recover_over_ppll": ("ppll_recover", "ppll"),
    "ceiling": ("bound", "bound_in_turn"),
    "gpipe_over_torch_gpipe": ("gpipe_m4", "torch_gpipe_m4"),
    "interleaved_over_torch_interleaved": ("interleaved_m4", "torch_interleaved_m4"),
    "zb_h1_over_1f1b": ("zb_h1_m4", "1f1b_m4"),
    "replicas_over_ddp": ("bp_replicas", "ddp"),
}
"""For each key, two rows: the speed of the first is divided by that of the second."""

TARGETS = {
    model: {
        "ppll_over_bound": 0.95,
        "ppll_over_torch_gpipe": over_torch,
        "ppll_over_ll": 1.6,
        "recover_over_ppll": 0.99,
        "gpipe_over_torch_gpipe": 1.0,
        "replicas_over_ddp": 0.95,
    }
    for model, over_torch in (("vit", 1.35), ("resnet32", 1.15))
}

SECONDS = 2.0

BUDGET_S = 270.0
"""Time limit in seconds for the rounds of a model on a number of stages."""

LEAST_ROUNDS = 2


def main(arguments: Sequence[str]) -> None:
    """Measure all models, write the results, and print them."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark schedules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--long", action="store_true", help="every row, for four times as long")
    parser.add_argument(
        "--gpus",
        type=int,
        nargs="+",
        help="numbers of stages (default: 2; with --long also 4, given four cores or GPUs)",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", choices=LONG, help="only these rows")
    parser.add_argument("--local", default="greedy", help="local method of ll and ppll")
    options = parser.parse_args(arguments)
    here = machine()
    room = max(here["cores"], len(here["gpus"]))
    numbers = options.gpus or ([2, 4] if options.long and room >= 4 else [2])
    names = options.rows or (LONG if options.long else SHORT)
    budget_s = BUDGET_S * (4 if options.long else 1)
    console = Console()
    models = {}
    for gpus in numbers:
        for model in options.models:
            key = model if gpus == numbers[0] else f"{model}_gpus{gpus}"
            case = Case(model, gpus, [f"local={options.local}"])
            try:
                models[key] = measure(case, names, budget_s, console.print)
            except ConfigError as error:
                parser.error(str(error))
            _print(console, key, models[key])
    conditions = {"local": options.local, "seconds": SECONDS, "source": source()}
    result = {"machine": here, "conditions": conditions, "models": models}
    save(result, RESULT)


def measure(
    case: Case, names: Sequence[str], budget_s: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure a model on a number of stages, and return the results for the JSON file.

    At least `LEAST_ROUNDS` rounds are made. `say` prints progress.

    Raises:
        RunFailedError: A contender failed. All contenders are stopped.
    """
    until = perf_counter() + budget_s
    forkserver.start()  # it imports torch while the profile is measured
    contenders, skipped = case.contenders(names)
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    losses: dict[str, float] = {}
    with ExitStack() as started:
        for contender in contenders:
            say(f"{case.model}: starting {contender.name}")
            started.callback(contender.stop)
            contender.start()
            losses[contender.name] = contender.warm_up()
        rounds, round_s = 0, 0.0
        while rounds < LEAST_ROUNDS or perf_counter() + round_s < until:
            start = perf_counter()
            for contender in contenders:
                rates[contender.name].append(contender.measure(SECONDS))
            rounds, round_s = rounds + 1, perf_counter() - start
            say(f"{case.model}: round {rounds} took {round_s:.0f} s")
        memory = {contender.name: contender.finish() for contender in contenders}
    speed = {name: median(each) for name, each in rates.items()}
    return {
        **ratios(speed),
        "samples_per_second": speed,
        "spread": {name: [min(each), max(each)] for name, each in rates.items()},
        "peak_memory_bytes": memory,
        "warm_up_loss": losses,
        "gpus": case.gpus,
        "rounds": rounds,
        "skipped": skipped,
        "overrides": case.overrides,
        **case.describe(names),
    }


def ratios(speed: Mapping[str, float]) -> dict[str, float]:
    """Return each ratio of `RATIOS` for which both rows were measured."""
    return {
        key: speed[name] / speed[other]
        for key, (name, other) in RATIOS.items()
        if name in speed and other in speed
    }


def _print(console: Console, key: str, result: Mapping[str, Any]) -> None:
    targets = TARGETS.get(key, {}) if result["gpus"] == 2 else {}
    summary = Table(f"{key}, {result['gpus']} stages", "", "target")
    for ratio in RATIOS:
        if ratio in result:
            target = targets.get(ratio)
            summary.add_row(ratio, f"{result[ratio]:.3f}", f"{target:.2f}" if target else "")
    table = Table("", "samples/s", "least to most", "peak memory per process, MB")
    for name, speed in result["samples_per_second"].items():
        least, most = result["spread"][name]
        sizes = result["peak_memory_bytes"][name]
        table.add_row(
            name,
            f"{speed:.1f}",
            f"{least:.1f} to {most:.1f}",
            " / ".join("?" if size is None else f"{size / 1e6:.0f}" for size in sizes),
        )
    console.print(summary)
    console.print(table)
    for name, reason in result["skipped"].items():
        console.print(f"{name}: left out, {reason}")
