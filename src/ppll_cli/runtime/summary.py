"""The summary of a run: what `summary.json` holds."""

import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

import ppll_cli
from ppll_cli.observe.metrics import Metrics
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.prediction.pace import Pipeline, Steady
from ppll_cli.runtime.prepare import Prepared
from ppll_cli.schedules.instructions import Instruction
from ppll_cli.settings import Settings

Report = Mapping[str, Any]


def summarise(
    settings: Settings,
    choices: Mapping[str, str],
    prepared: Prepared,
    metrics: Metrics,
    reports: Sequence[Report] = (),
    status: str = "running",
    seconds: float = 0.0,
) -> dict[str, Any]:
    """What is known of a run at its end.

    Args:
        settings: The configuration.
        choices: The option chosen in each group.
        prepared: The job, and what its parts cost.
        metrics: What was measured.
        reports: The last report of each worker; none of a run that failed, or is yet to begin.
        status: completed, interrupted or failed; before that, running.
        seconds: How long the workers trained, evaluation and checkpoints included.
    """
    job = prepared.job
    course = job.course
    step = reports[-1]["step"] if reports else metrics.last_step
    predicted = _prediction(prepared, reports)
    return {
        "status": status,
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
        "seed": job.seed,
        "epochs": course.epochs,
        "steps": step,
        "batch_size": course.batch_size,
        "microbatches": job.make_schedule().microbatches,
        "precision": settings.precision,
        "numerics": reports[0]["numerics"] if reports else None,
        "train": {
            "loss": metrics.train_loss,
            "seconds": seconds,
            "samples_per_second": _rate(job, reports),
        },
        "test": metrics.result("test"),
        **({"val": metrics.result("val")} if "val" in course.samples else {}),
        "per_module": list(_modules(prepared, metrics)),
        "stages": list(_stages(prepared, reports)),
        "edges": list(_edges(prepared, reports)),
        "pipeline": {
            "bubble_fraction": _bubble(reports),
            "predicted_bubble_fraction": predicted and predicted.bubble_fraction,
            "predicted_samples_per_second": predicted
            and sum(r["samples"] / r["batches"] for r in reports[-job.replicas :])
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


def _stages(prepared: Prepared, reports: Sequence[Report]) -> Iterator[dict[str, Any]]:
    job = prepared.job
    for worker, seat in enumerate(job.seats):
        report = reports[worker] if reports else None
        yield {
            "index": seat.stage,
            "replica": seat.replica,
            "machine": job.home(seat),
            "device": job.device(seat),
            "units": [prepared.units[unit] for unit in job.layout.stages[seat.stage]],
            "modules": [chunk.module for chunk in job.layout.chunks(seat.stage)],
            "compute_fraction": _fraction(report, "compute", "optimizer"),
            "aux_fraction": _fraction(report, "auxiliary"),
            "starved_fraction": _fraction(report, "starved"),
            "blocked_fraction": _fraction(report, "blocked"),
            "data_fraction": _fraction(report, "data"),
            "transfer_fraction": _fraction(report, "transfer"),
            "average_fraction": _fraction(report, "average"),
            **{
                key: report[key] if report and _steady(report) else None
                for key in ("peak_memory_bytes", "peak_reserved_bytes")
            },
        }


def _edges(prepared: Prepared, reports: Sequence[Report]) -> Iterator[dict[str, Any]]:
    for stage, edge in enumerate(prepared.job.edges):
        directions = [(stage, stage + 1, edge.names)]
        if edge.gradients:
            directions.append((stage + 1, stage, edge.gradients))
        for source, target, names in directions:
            own = _replicas(prepared.job, reports, source)
            sent = sum(report["bytes_sent"][target] for report in own) if own else None
            yield {"from": source, "to": target, "names": list(names), "bytes_sent": sent}


def _steady(report: Report | None) -> TypeGuard[Report]:
    """Whether there is a steady state to speak of."""
    return report is not None and report["batches"] > 0 and report["wall_s"] > 0


def _replicas(job: Job, reports: Sequence[Report], stage: int) -> Sequence[Report]:
    """The reports of a stage's replicas."""
    return reports[stage * job.replicas : (stage + 1) * job.replicas]


def _rate(job: Job, reports: Sequence[Report]) -> float | None:
    """Samples per second of the last stage, all replicas together."""
    last = _replicas(job, reports, job.stages - 1)
    if not last or not all(map(_steady, last)):
        return None
    return float(sum(report["samples"] / report["wall_s"] for report in last))


def _fraction(report: Report | None, *kinds: str) -> float | None:
    if report is None or not _steady(report):
        return None
    return float(sum(report["spent_s"].get(kind, 0.0) for kind in kinds) / report["wall_s"])


def _bubble(reports: Sequence[Report]) -> float | None:
    """Share of the stages' steady state in which they waited."""
    if not reports or not all(_steady(report) for report in reports):
        return None
    waits = [
        sum(report["spent_s"].get(k, 0.0) for k in ("starved", "blocked")) for report in reports
    ]
    return float(sum(waits) / sum(report["wall_s"] for report in reports))


def _prediction(prepared: Prepared, reports: Sequence[Report]) -> Steady | None:
    """What the simulator makes of the mean times that the run's own instructions took."""
    if not reports or not all(_steady(report) for report in reports):
        return None

    def cost(stage: int, instruction: Instruction) -> float:
        report = reports[stage * prepared.job.replicas]  # they all do the same
        return float(report["instruction_s"].get(instruction, 0.0) / report["batches"])

    return Pipeline.of(prepared.job).steady(cost)


def _git_commit() -> str | None:
    """The commit that the program runs from, where it runs from a clone."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
