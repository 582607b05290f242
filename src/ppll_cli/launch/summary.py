"""The summary of a run: the content of `summary.json`."""

import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ppll_cli
from ppll_cli.job.parts import Parts, Worker, is_steady, rate, worker
from ppll_cli.observe.metrics import Metrics
from ppll_cli.observe.progress import FRACTIONS
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.predict.pace import Pipeline, Steady
from ppll_cli.prepare.preparation import Prepared

Report = Mapping[str, Any]

GIT_LIMIT_S = 5.0
"""Seconds that git may take to return the commit. Git hangs if a network disk does not respond."""


def summarise(
    choices: Mapping[str, str],
    prepared: Prepared,
    metrics: Metrics,
    parts: Parts,
    reports: Sequence[Report] = (),
    status: str = "running",
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Return the content of `summary.json`, as far as it is known.

    Speeds and fractions of time are computed over the run's current part and all earlier parts with
    the same conditions. `reports` has the last report of each worker; it is empty if the run failed
    or has not begun. Before the end, the status is "running". `seconds` is the time since the
    workers began to train after the start or resumption of the run, including evaluations and
    checkpoints.
    """
    job = prepared.job
    course, settings = job.course, job.settings
    step = reports[-1]["step"] if reports else metrics.last_step
    counted = [worker(report) for report in reports]
    listed = parts.listed(step, seconds, counted)
    workers = parts.alike(counted)
    predicted = _prediction(prepared, workers)
    return {
        "status": status,
        "name": settings.name,
        "tags": settings.tags,
        "schedule": choices["schedule"],
        "model": choices["model"],
        "data": choices["data"],
        "local": choices["local"],
        "gpus": len(job.seats),
        "replicas": job.replicas,
        "machines": len({*job.homes, 0}),
        "devices": list(job.devices),
        "device": job.devices[0].partition(":")[0],
        "emulated": prepared.emulated,
        "threads": job.threads,
        "modules": len(job.layout.modules),
        "seed": settings.seed,
        "weights": prepared.weights,
        "epochs": course.epochs,
        "steps": step,
        "batch_size": course.batch_size,
        "microbatches": job.make_schedule().microbatches,
        "precision": settings.precision,
        "numerics": reports[0]["numerics"] if reports else None,
        "train": {
            "loss": metrics.train_loss,
            "seconds": sum(part["seconds"] for part in listed) if listed else seconds,
            "samples_per_second": rate(workers, job.replicas),
            "parts": [{k: v for k, v in part.items() if k != "stages"} for part in listed],
        },
        "test": metrics.result("test"),
        **{split: metrics.result(split) for split in course.evaluated if split != "test"},
        "per_module": list(_modules(prepared, metrics)),
        "stages": list(_stages(prepared, workers)),
        "edges": list(_edges(prepared, workers)),
        "pipeline": {
            "bubble_fraction": _bubble(workers),
            "predicted_bubble_fraction": predicted and predicted.bubble_fraction,
            "predicted_samples_per_second": predicted
            and sum(r["samples"] / r["batches"] for r in workers[-job.replicas :])
            / predicted.batch_s,
        },
        "versions": {
            "ppll_run": ppll_cli.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "hydra-core")},
        },
        "git_commit": _git_commit(),
    }


def _modules(prepared: Prepared, metrics: Metrics) -> Iterator[dict[str, Any]]:
    for index, units in enumerate(prepared.job.layout.modules):
        costs = [prepared.unit_costs[unit] for unit in units]
        auxiliary = prepared.auxiliary_costs[index]
        yield {
            "units": [prepared.units[unit] for unit in units],
            "params": sum(cost.params for cost in costs),
            "aux_params": auxiliary.params,
            "flops": sum(cost.flops for cost in costs),
            "aux_flops": auxiliary.flops,
            "test": metrics.result("test", index),
        }


def _stages(prepared: Prepared, workers: Sequence[Worker]) -> Iterator[dict[str, Any]]:
    job = prepared.job
    for number, seat in enumerate(job.seats):
        counted = workers[number] if workers and is_steady(workers[number]) else None
        yield {
            "index": seat.stage,
            "replica": seat.replica,
            "machine": job.home(seat),
            "device": job.device(seat),
            "units": [prepared.units[unit] for unit in job.layout.units(seat.stage)],
            "modules": job.layout.modules_of(seat.stage),
            **{f"{name}_fraction": _fraction(counted, *kinds) for name, kinds in FRACTIONS.items()},
            **({"snapshot_fraction": _fraction(counted, "snapshot")} if job.restartable else {}),
            "peak_memory_bytes": counted and counted["peak_memory_bytes"],
            "peak_reserved_bytes": counted and counted["peak_reserved_bytes"],
        }


def _edges(prepared: Prepared, workers: Sequence[Worker]) -> Iterator[dict[str, Any]]:
    """Yield for each pair of stages the tensors and bytes that the first sends to the second."""
    job = prepared.job
    for (source, target), names in job.crossing().items():
        own = workers[source * job.replicas : (source + 1) * job.replicas]
        sent = sum(each["bytes_sent"].get(str(target), 0) for each in own) if own else None
        yield {"from": source, "to": target, "names": sorted(names), "bytes_sent": sent}


def _fraction(counted: Worker | None, *kinds: str) -> float | None:
    if counted is None:
        return None
    return sum(counted["spent_s"].get(kind, 0.0) for kind in kinds) / counted["wall_s"]


def _bubble(workers: Sequence[Worker]) -> float | None:
    """Return the fraction of steady-state time in which workers waited for other stages."""
    if not workers or not all(map(is_steady, workers)):
        return None
    waits = [sum(each["spent_s"].get(k, 0.0) for k in ("starved", "blocked")) for each in workers]
    return sum(waits) / sum(each["wall_s"] for each in workers)


def _prediction(prepared: Prepared, workers: Sequence[Worker]) -> Steady | None:
    """Return the simulator's prediction from the mean time of each instruction in the run."""
    if not workers or not all(map(is_steady, workers)):
        return None

    def cost(stage: int, instruction: Instruction) -> float:
        counted = workers[stage * prepared.job.replicas]  # replicas run the same instructions
        return counted["instruction_s"].get(repr(instruction), 0.0) / counted["batches"]

    return Pipeline.of(prepared.job).steady(cost)


def _git_commit() -> str | None:
    """Return the commit of the program's source; None outside a clone, or if git fails."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=GIT_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError):  # git is not installed, failed or hangs
        return None
    commit = found.stdout.decode(errors="replace").strip()
    return commit if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None
