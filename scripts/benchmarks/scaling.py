"""`scripts/benchmark scaling`: predicted speed of every schedule on 2, 4, ... 1024 devices.

The predictions come from one profile of a vision transformer with 1024 units, of which only a few
are measured. The table also has median speeds of short runs of this model: `ppll` and `gpipe` on
two stages or, with `--long`, every schedule on up to 8 stages, if this machine has enough cores or
GPUs. The model is narrow, so that a batch takes only seconds. All stages have equal numbers of
units (partition=uniform), and one thread each.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from ppll_cli.cli.plan import SCHEDULES, Plan
from ppll_cli.cli.planner import Planner
from scripts.benchmarks.runs import machine, run, save, source

FOLDER = Path("outputs/benchmark")
RESULT = FOLDER / "scaling.json"
MODEL = ["model=vit", "model.depth=1022", "model.dim=32", "model.heads=2", "model.patch=8"]
MODEL += ["data=synthetic", "batch_size=16", "threads=1"]
GPUS = [2**power for power in range(1, 11)]
RUN = ["max_steps=20", "data.eval_limit=16"]
REPETITIONS = 3
MEASURED = ["ppll", "gpipe"]

Rows = list[dict[str, Any]]


def main(arguments: Sequence[str]) -> None:
    """Measure and predict all rows, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark scaling", description=__doc__)
    parser.add_argument("--long", action="store_true", help="every schedule, on up to 8 stages")
    options = parser.parse_args(arguments)
    here = machine()
    room = len(here["gpus"]) or here["cores"]
    numbers = [gpus for gpus in GPUS if gpus <= min(room, 8 if options.long else 2)]
    measured = measure(list(SCHEDULES) if options.long else MEASURED, numbers)
    rows = predict(measured)
    conditions = {"overrides": MODEL, "runs": RUN, "repetitions": REPETITIONS, "source": source()}
    result = {"machine": here, "conditions": conditions, "rows": rows}
    save(result, RESULT)
    _print(rows)


def measure(schedules: Sequence[str], numbers: Sequence[int]) -> Mapping[tuple[int, str], float]:
    """Measure all rows several times; return median speeds by number of stages and schedule."""
    cases = [(gpus, schedule) for gpus in numbers for schedule in schedules]
    rates: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    for _ in range(REPETITIONS):
        for gpus, schedule in cases:
            overrides = [*MODEL, *RUN, f"schedule={schedule}", f"gpus={gpus}"]
            summary = run(overrides, FOLDER / "scaling" / f"{schedule}-{gpus}")
            rates[gpus, schedule].append(summary["train"]["samples_per_second"])
    return {case: median(found) for case, found in rates.items()}


def predict(measured: Mapping[tuple[int, str], float]) -> Rows:
    """Return a row for each number of stages and schedule, with the measured speed if known."""
    plan = Plan.compose([*MODEL, f"gpus={','.join(map(str, GPUS))}"])
    with Planner(plan.settings, SCHEDULES) as planner:
        predicted = {gpus: planner.rows(gpus) for gpus in plan.gpus}
        planner.check()
    rows = []
    for gpus, each in predicted.items():
        for schedule, row in each.items():
            found = row.prediction
            if found is None:  # for example, `interleaved` needs more units
                continue
            rows.append(
                {
                    "gpus": gpus,
                    "schedule": schedule,
                    "predicted_samples_per_second": found.samples_per_second,
                    "bubble": found.bubble_fraction,
                    "speed_up_over_bp": row.speed_up,
                    "measured_samples_per_second": measured.get((gpus, schedule)),
                }
            )
    return rows


def _print(rows: Rows) -> None:
    table = Table(
        "gpus", "schedule", "samples/s", "x bp", "bubble", "measured", "predicted / measured"
    )
    for row in rows:
        predicted, measured = (row[f"{k}_samples_per_second"] for k in ("predicted", "measured"))
        table.add_row(
            str(row["gpus"]),
            row["schedule"],
            f"{predicted:.1f}",
            f"{row['speed_up_over_bp']:.2f}",
            f"{row['bubble']:.3f}",
            f"{measured:.1f}" if measured else "",
            f"{predicted / measured:.2f}" if measured else "",
        )
    Console(highlight=False).print(table)
