"""The summary of a run: the content of `summary.json`."""

import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ppll_cli
from ppll_cli.job.job import Job
from ppll_cli.job.parts import Part, Parts, Worker, is_steady, rate
from ppll_cli.launch.machines.others import Report
from ppll_cli.launch.restarts import RestartLog
from ppll_cli.observe.metrics import Metrics
from ppll_cli.observe.progress import FRACTIONS
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.predict.pace import steady_state
from ppll_cli.prepare.preparation import Prepared

GIT_LIMIT_S = 5.0
"""Seconds that git may take: it hangs if a network disk does not respond."""


def summarise(
    choices: Mapping[str, str],
    prepared: Prepared,
    metrics: Metrics,
    parts: Parts,
    restarts: RestartLog,
    reports: Sequence[Report] = (),
    status: str = "running",
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Return the content of `summary.json`, as far as it is known.

    A run has several parts if it was resumed. Speeds and fractions of time come from the current
    part, and from earlier parts with the same devices and settings (`parts.Conditions`).

    `choices` has the chosen option of each group. `reports` has the last report of each worker; it
    is empty if the run failed or has not begun. `seconds` is the time since the workers began to
    train in the current part, including evaluations and checkpoints.
    """
    job = prepared.job
    course, settings = job.course, job.settings
    step = reports[-1]["step"] if reports else metrics.last_step
    counted = [report["worker"] for report in reports]
    listed = parts.listed(step, seconds, counted)
    workers = parts.alike(counted)
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
        "train": {"loss": metrics.train_loss, **_speed(job, listed, seconds, workers)},
        "test": metrics.result("test"),
        **{split: metrics.result(split) for split in course.evaluated if split != "test"},
        "per_module": list(_modules(prepared, metrics)),
        "stages": list(_stages(prepared, workers)),
        "edges": list(_edges(prepared, workers)),
        "pipeline": _pipeline(job, workers),
        "versions": _versions(),
        "git_commit": _git_commit(),
        **_recovery(job, restarts),
    }


def _speed(
    job: Job, parts: Sequence[Part], seconds: float, workers: Sequence[Worker]
) -> dict[str, Any]:
    return {
        "seconds": sum(part["seconds"] for part in parts) if parts else seconds,
        "samples_per_second": rate(workers, job.replicas),
        "parts": list(parts),
    }


def _modules(prepared: Prepared, metrics: Metrics) -> Iterator[dict[str, Any]]:
    job = prepared.job
    for index, units in enumerate(job.layout.modules):
        costs = [prepared.subject.costs[unit] for unit in units]
        auxiliary = prepared.auxiliary_costs[index]
        yield {
            "units": [job.names[unit] for unit in units],
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
            "units": [job.names[unit] for unit in job.layout.units(seat.stage)],
            "modules": job.layout.modules_of(seat.stage),
            **{f"{name}_fraction": _fraction(counted, *kinds) for name, kinds in FRACTIONS.items()},
            **({"snapshot_fraction": _fraction(counted, "snapshot")} if job.restartable else {}),
            "peak_memory_bytes": counted and counted["peak_memory_bytes"],
            "peak_reserved_bytes": counted and counted["peak_reserved_bytes"],
        }


def _edges(prepared: Prepared, workers: Sequence[Worker]) -> Iterator[dict[str, Any]]:
    job = prepared.job
    for (source, target), names in job.crossing().items():
        own = workers[source * job.replicas : (source + 1) * job.replicas]
        sent = sum(each["bytes_sent"].get(str(target), 0) for each in own) if own else None
        yield {"from": source, "to": target, "names": sorted(names), "bytes_sent": sent}


def _fraction(counted: Worker | None, *kinds: str) -> float | None:
    if counted is None:
        return None
    return sum(counted["spent_s"].get(kind, 0.0) for kind in kinds) / counted["wall_s"]


def _pipeline(job: Job, workers: Sequence[Worker]) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys(
        ("bubble_fraction", "predicted_bubble_fraction", "predicted_samples_per_second")
    )
    if not workers or not all(map(is_steady, workers)):
        return found

    def cost(stage: int, instruction: Instruction) -> float:
        counted = workers[stage * job.replicas]  # replicas run the same instructions
        return counted["instruction_s"].get(repr(instruction), 0.0) / counted["batches"]

    waits = [sum(each["spent_s"].get(k, 0.0) for k in ("starved", "blocked")) for each in workers]
    samples = sum(each["samples"] / each["batches"] for each in workers[-job.replicas :])
    predicted = steady_state(job.streams(), lambda channel: job.channels[channel].slots, cost)
    found["bubble_fraction"] = sum(waits) / sum(each["wall_s"] for each in workers)
    found["predicted_bubble_fraction"] = predicted.bubble_fraction
    found["predicted_samples_per_second"] = samples / predicted.batch_s
    return found


def _recovery(job: Job, restarts: RestartLog) -> dict[str, Any]:
    listed = restarts.listed()
    if job.restartable:
        return {"recover": {"every": job.snapshot_every}, "restarts": listed}
    return {"restarts": listed} if listed else {}


def _versions() -> dict[str, str]:
    return {
        "ppll_run": ppll_cli.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "hydra-core")},
    }


def _git_commit() -> str | None:
    folder = Path(__file__).parents[3] / ".git"
    if not folder.exists():
        return None
    # If GIT_DIR is set, as in a hook, `git -C` would read the user's own repository.
    command = ["git", f"--git-dir={folder}", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=GIT_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    commit = found.stdout.decode(errors="replace").strip()
    return commit if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None
