"""`scripts/benchmark network`: how much a link between two machines slows down each schedule.

Two network namespaces on this machine represent two machines, joined by a link with or without a
limited rate. Each row trains on two stages, or two replicas, with one thread each: on one machine,
then over each link. The table shows the median speed over each link relative to the median speed on
one machine, the bytes that are sent per batch, and speeds that `ppll-plan` predicts from one
profile and from the measured latency and speed of each link. In `bf16` rows the sent tensors are
rounded to 16 bits. `ddp` is torch's `DistributedDataParallel` with its defaults. With `--accuracy`,
the benchmark instead compares the test accuracy with and without rounding, for the given settings.
Without options it trains a ViT under three schedules, in seven minutes on two cores.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from ppll_cli.cli.planner import Planner
from ppll_cli.config.settings import Settings
from ppll_cli.leaves.files import write_json
from ppll_cli.predict.interconnect import Interconnect, Link
from scripts.benchmarks.contenders import compose_settings
from scripts.benchmarks.namespaces import (
    ADDRESSES,
    NamespaceError,
    Namespaces,
    as_torchrun,
    namespaces,
)
from scripts.benchmarks.runs import RunFailedError, machine, run, source
from scripts.benchmarks.session import LEAVE_S, Session, ppll_run
from scripts.benchmarks.trials import FOLDER, table

COMMON = (
    *("data=synthetic", "data.test_samples=64", "batch_size=64", "gpus=2", "threads=1"),
    *("device=cpu", "epochs=1000", "timeline=false", "partition=flops", "eval_every=1000"),
)
MODELS = {"vit": ("model=vit",), "resnet32": ("model=resnet32", "optim=sgd", "optim.lr=0.01")}
BF16 = "transport.wire_dtype=bf16"
DDP = "ddp"
ROWS = {
    "ppll": ("schedule=ppll",),
    "ppll, bf16": ("schedule=ppll", BF16),
    "gpipe": ("schedule=gpipe",),
    "gpipe, bf16": ("schedule=gpipe", BF16),
    "1f1b": ("schedule=1f1b",),
    "bp, 2 replicas": ("schedule=bp", "replicas=2"),
    DDP: ("schedule=bp",),
}
SHORT = ("ppll", "gpipe", "bp, 2 replicas")
LEARNT = {name: ROWS[name] for name in ("ppll", "ppll, bf16", "gpipe", "gpipe, bf16")}
LINKS: dict[str, str | None] = {"unshaped": None, "1 Gbit/s": "1gbit", "200 Mbit/s": "200mbit"}
HERE = "one machine"
LIMIT_S = 300.0

Speeds = dict[str, list[float]]
"""The samples per second of each round, by link."""


def main(arguments: Sequence[str]) -> None:
    """Measure all rows, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark network", description=__doc__)
    parser.add_argument("--long", action="store_true", help="measure every model and row")
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--rows", nargs="+", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=1, help="number of runs of each case")
    parser.add_argument("--steps", type=int, default=25, help="optimizer steps of each run")
    parser.add_argument(
        "--accuracy",
        nargs="+",
        metavar="KEY=VALUE",
        help="compare the test accuracy with and without rounding, for these settings",
    )
    options = parser.parse_args(arguments)
    console = Console()
    result: dict[str, Any] = {"machine": machine(), "source": source()}
    try:
        with namespaces() as both:
            if options.accuracy:
                result["accuracy"] = _learn(both, options.accuracy, options.rounds, console)
            else:
                models = options.models or (list(MODELS) if options.long else ["vit"])
                rows = options.rows or list(ROWS if options.long else SHORT)
                result["links"] = links = _links(both, console)
                result["models"] = {model: {} for model in models}
                for model, name, row in _rows(both, models, rows, options, links):
                    result["models"][model][name] = row
                    console.print(f"{model} {name}: {row}", markup=False, soft_wrap=True)
                    write_json(FOLDER / "network.json", result)
    except NamespaceError as error:
        parser.error(str(error))
    name = "network-accuracy" if options.accuracy else "network"
    write_json(FOLDER / f"{name}.json", result)
    console.print(markdown(result), markup=False, soft_wrap=True)


def overrides_of(model: str, name: str, steps: int) -> tuple[str, ...]:
    """Return the overrides of a row."""
    return (*COMMON, *MODELS[model], *ROWS[name], f"max_steps={steps}")


def markdown(result: Mapping[str, Any]) -> str:
    """Return tables of the results, in Markdown."""
    parts = []
    for model, rows in result.get("models", {}).items():
        columns = [model, f"samples/s on {HERE}", *LINKS, "MB a batch"]
        columns += [f"predicted over measured, {HERE}", *LINKS]
        cells = []
        for name, row in rows.items():
            speed = {link: median(each) for link, each in row["samples_per_second"].items()}
            relative = [f"{speed[link] / speed[HERE]:.2f}" for link in LINKS]
            crossing = f"{row['bytes_per_batch'] / 1e6:.2f}" if row["bytes_per_batch"] else ""
            predicted = row["predicted"]
            held = [
                f"{predicted[link] / speed[link]:.2f}" if predicted else ""
                for link in (HERE, *LINKS)
            ]
            cells.append([name, f"{speed[HERE]:.0f}", *relative, crossing, *held])
        parts.append(table(columns, cells))
    if accuracy := result.get("accuracy"):
        cells = [
            [name, *(f"{found:.4f}" for found in (median(each), min(each), max(each)))]
            for name, each in accuracy.items()
        ]
        parts.append(table(["", "test accuracy, median", "least", "most"], cells))
    return "\n".join(parts)


def predicted(model: str, name: str, links: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the predicted samples per second of a row: on one machine, and over each link.

    The result is empty for `ddp`. Both namespaces share this machine's cores and memory, so the
    prediction for a link assumes that all workers share the cores of one machine.
    """
    if name == DDP:
        return {}
    base = compose_settings(overrides_of(model, name, steps=1))

    def settings(_: str, gpus: int, replicas: int) -> Settings:
        return base.model_copy(update={"gpus": gpus, "replicas": replicas})

    found = {}
    for where, each in ((HERE, None), *links.items()):
        link = each and Link(**each)
        interconnect = Interconnect(between=link or None)
        with Planner(
            settings,
            [name],
            [base.replicas],
            interconnect,
            per_machine=1 if link else None,
            neighbours=1,
        ) as planner:
            (row,) = planner.rows(2).values()
        assert row.prediction is not None, row.obstacle
        found[where] = row.prediction.samples_per_second
    return found


def _links(both: Namespaces, console: Console) -> dict[str, dict[str, float]]:
    links = {}
    for link, rate in LINKS.items():
        both.shape(rate)
        links[link] = _at_ends(both, ["ping"])
        console.print(f"{link}: {links[link]}", markup=False)
    return links


def _rows(
    both: Namespaces,
    models: Sequence[str],
    names: Sequence[str],
    options: argparse.Namespace,
    links: Mapping[str, Mapping[str, float]],
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    cache = FOLDER / "network" / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache.absolute())
    for model in models:
        shutil.rmtree(cache, ignore_errors=True)  # old times may be wrong now
        for name in names:
            row = {"predicted": predicted(model, name, links)}
            row |= _measure(both, model, name, options.rounds, options.steps)
            yield model, name, row


def _measure(both: Namespaces, model: str, name: str, rounds: int, steps: int) -> dict[str, Any]:
    overrides, measure = overrides_of(model, name, steps), _ddp if name == DDP else _ours
    speeds: Speeds = {HERE: [], **{link: [] for link in LINKS}}
    sent = 0.0
    for _ in range(rounds):
        speeds[HERE].append(measure(None, overrides, steps)[0])
        for link, rate in LINKS.items():
            both.shape(rate)
            speed, sent = measure(both, overrides, steps)
            speeds[link].append(speed)
    return {"samples_per_second": speeds, "bytes_per_batch": sent}


def _ours(both: Namespaces | None, overrides: Sequence[str], steps: int) -> tuple[float, float]:
    # Run ppll-run in both namespaces; return samples per second and bytes sent per batch. `both` is
    # None for a run on one machine, also in the functions below.
    folder = FOLDER / "network" / ("one" if both is None else "both")
    found = run(overrides, folder) if both is None else _run_on_both(both, overrides, folder)
    sent = sum(edge["bytes_sent"] for edge in found["edges"]) / found["steps"]
    if not found["edges"]:  # bytes that each of two replicas sends in a ring all-reduce
        sent = 4.0 * sum(module["params"] for module in found["per_module"])
    return found["train"]["samples_per_second"], sent


def _ddp(both: Namespaces | None, overrides: Sequence[str], steps: int) -> tuple[float, float]:
    # Train with `DistributedDataParallel`; return samples per second, and 0 (bytes unknown).
    warm_up = min(10, steps // 5)
    return _at_ends(both, ["ddp", str(warm_up), str(steps - warm_up), *overrides]), 0.0


def _learn(
    both: Namespaces, overrides: Sequence[str], rounds: int, console: Console
) -> dict[str, list[float]]:
    # Train over the unlimited link; return the test accuracy of each seed by row.
    both.shape(None)
    found: dict[str, list[float]] = {name: [] for name in LEARNT}
    for seed in range(rounds):
        for name, own in LEARNT.items():
            given = [*own, "gpus=2", "threads=1", "device=cpu", f"seed={seed}", *overrides]
            summary = _run_on_both(both, given, FOLDER / "network" / "both")
            found[name].append(summary["test"]["accuracy"])
            console.print(f"{name}, seed {seed}: {found[name][-1]}", markup=False)
    return found


def _run_on_both(both: Namespaces, overrides: Sequence[str], run_dir: Path) -> dict[str, Any]:
    shutil.rmtree(run_dir, ignore_errors=True)
    command = ppll_run(*overrides, f"hydra.run.dir={run_dir.absolute()}")
    environments = [as_torchrun(rank, ADDRESSES[0], 29400) for rank in range(2)]
    _side_by_side([both.command(rank, command) for rank in range(2)], environments)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def _at_ends(both: Namespaces | None, arguments: Sequence[str]) -> Any:
    # Run `link_ends` with these arguments in both namespaces; return its result.
    store = (FOLDER / "network" / "store").absolute()
    store.unlink(missing_ok=True)
    what, *rest = arguments
    program = [sys.executable, "-m", "scripts.benchmarks.link_ends", what]
    commands = [[*program, str(rank), str(store), *rest] for rank in range(2)]
    environments = [{"GLOO_SOCKET_IFNAME": "lo"} for _ in range(2)]
    if both is not None:
        commands = [both.command(rank, command) for rank, command in enumerate(commands)]
        environments = [{"GLOO_SOCKET_IFNAME": link} for link in both.links]
    return json.loads(_side_by_side(commands, environments).splitlines()[-1])


def _side_by_side(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]
) -> str:
    # Run programs at the same time, and return the output of the first.
    folder = FOLDER / "network"
    folder.mkdir(parents=True, exist_ok=True)
    programs = zip(commands, environments, strict=True)
    with ExitStack() as started:
        sessions = [
            started.enter_context(Session(command, folder / f"end-{number}.txt", environment))
            for number, (command, environment) in enumerate(programs)
        ]
        # If a program fails, the others may wait for it.
        failed = sessions[0].wait_until(
            lambda: any(session.status for session in sessions), LIMIT_S, look_s=0.1
        )
        if failed or any(session.wait(LEAVE_S) != 0 for session in sessions):
            text = "".join(session.printed() for session in sessions)
            raise RunFailedError(f"{' '.join(commands[0])} failed or is too slow:\n{text}")
        return sessions[0].printed()
