"""`scripts/benchmark network`: what a link between two machines costs each schedule.

Two machines are two network namespaces on one, joined by a link that is left as it is or shaped.
Every row trains on two stages, or replicas, of one thread each: on one machine, and over each link,
in turn, in several rounds; shown is the speed over a link relative to that on one machine, from the
medians, beside the bytes that a batch sends over it. `bf16` rows round what crosses to 16 bits.
Without options that is a ViT under three schedules, in seven minutes on two cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from ppll_cli.benchmarks.namespaces import (
    ADDRESSES,
    NamespaceError,
    Namespaces,
    as_torchrun,
    namespaces,
)
from ppll_cli.benchmarks.runs import RunFailedError, machine, run, source
from ppll_cli.benchmarks.trials import FOLDER, table
from ppll_cli.files import write_json

COMMON = (
    *("data=synthetic", "data.test_samples=64", "batch_size=64", "gpus=2", "threads=1"),
    *("device=cpu", "epochs=1000", "timeline=false", "partition=flops", "eval_every=1000"),
)
MODELS = {"vit": ("model=vit",), "resnet32": ("model=resnet32", "optim=sgd", "optim.lr=0.01")}
BF16 = "transport.wire_dtype=bf16"
ROWS = {
    "ppll": ("schedule=ppll",),
    "ppll, bf16": ("schedule=ppll", BF16),
    "gpipe": ("schedule=gpipe",),
    "gpipe, bf16": ("schedule=gpipe", BF16),
    "1f1b": ("schedule=1f1b",),
    "bp, 2 replicas": ("schedule=bp", "replicas=2"),
}
SHORT = ("ppll", "gpipe", "bp, 2 replicas")
LINKS: dict[str, str | None] = {"unshaped": None, "1 Gbit/s": "1gbit", "200 Mbit/s": "200mbit"}
HERE = "one machine"
LIMIT_S = 300.0


def main(arguments: Sequence[str]) -> None:
    """Measure, write the result and print it."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark network", description=__doc__)
    parser.add_argument("--long", action="store_true", help="every model and row")
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--rows", nargs="+", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=1, help="how often each run is made")
    parser.add_argument("--steps", type=int, default=25, help="of each run")
    options = parser.parse_args(arguments)
    console = Console()
    result: dict[str, Any] = {"machine": machine(), "source": source(), "models": {}}
    try:
        with namespaces() as both:
            for model in options.models or (MODELS if options.long else ["vit"]):
                result["models"][model] = found = {}
                for name in options.rows or (ROWS if options.long else SHORT):
                    overrides = overrides_of(model, name, options.steps)
                    found[name] = _measure(both, overrides, options.rounds)
                    console.print(f"{model} {name}: {found[name]}", markup=False)
                    write_json(FOLDER / "network.json", result)
    except NamespaceError as error:
        parser.error(str(error))
    console.print(markdown(result), markup=False)


def overrides_of(model: str, name: str, steps: int) -> tuple[str, ...]:
    """What a row is run with, on one machine and on two."""
    return (*COMMON, *MODELS[model], *ROWS[name], f"max_steps={steps}")


def markdown(result: Mapping[str, Any]) -> str:
    """A table for each model."""
    parts = []
    for model, rows in result["models"].items():
        columns = [model, "samples/s on one machine", *LINKS, "MB a batch"]
        cells = []
        for name, row in rows.items():
            speed = {link: median(each) for link, each in row["samples_per_second"].items()}
            relative = [f"{speed[link] / speed[HERE]:.2f}" for link in LINKS]
            crossing = f"{row['bytes_per_batch'] / 1e6:.2f}"
            cells.append([name, f"{speed[HERE]:.0f}", *relative, crossing])
        parts.append(table(columns, cells))
    return "\n".join(parts)


def _measure(both: Namespaces, overrides: Sequence[str], rounds: int) -> dict[str, Any]:
    """A row's speeds, by link; and what a batch sends over it."""
    speeds: dict[str, list[float]] = {HERE: [], **{link: [] for link in LINKS}}
    sent = 0.0
    for _ in range(rounds):
        alone = run(overrides, FOLDER / "network" / "one")
        speeds[HERE].append(alone["train"]["samples_per_second"])
        for link, rate in LINKS.items():
            both.shape(rate)
            found = _run_on_both(both, overrides, FOLDER / "network" / "both")
            speeds[link].append(found["train"]["samples_per_second"])
            sent = sum(edge["bytes_sent"] for edge in found["edges"]) / found["steps"]
            if not found["edges"]:  # replicas: each sends half of the sum, and gets the other half
                sent = 4.0 * sum(module["params"] for module in found["per_module"])
    return {"samples_per_second": speeds, "bytes_per_batch": sent}


def _run_on_both(both: Namespaces, overrides: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """Run on both machines; what `summary.json` holds."""
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, "-m", "ppll_cli", *overrides]
    command.append(f"hydra.run.dir={run_dir.absolute()}")
    with ExitStack() as started:
        launchers = []
        for rank in range(2):
            launcher = subprocess.Popen(
                both.command(rank, command),
                env={**os.environ, **as_torchrun(rank, ADDRESSES[0], 29400)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            started.callback(launcher.kill)
            launchers.append(launcher)
        said = [launcher.communicate(timeout=LIMIT_S)[0] for launcher in launchers]
    if any(launcher.returncode for launcher in launchers):
        raise RunFailedError(f"{' '.join(overrides)} over two machines:\n{''.join(said)}")
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary
