"""Run directories for comparisons."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ppll_cli.observe.comparison import compare
from ppll_cli.observe.comparison_tables import as_csv

CONFIG: dict[str, Any] = {
    "model": {"_target_": "m.M", "depth": 4},
    "data": {"_target_": "d.D", "root": "/here", "pad": 4},
    "data_sha256": "a" * 64,
    "local": {"_target_": "l.L", "modules": None},
    "fba": {"enabled": False},
    "optim": {"lr": 0.1},
    "batch_size": 64,
    "epochs": 2,
    "max_steps": None,
    "precision": "fp32",
    "compile": False,
    "device": "auto",
    "threads": 1,
    "gpus": 2,
}
CHOICES = {"model": "vit", "data": "digits", "local": "greedy"}


def make(
    folder: Path,
    schedule: str,
    rate: float | None = 100.0,
    *,
    gpus: int = 2,
    threads: int = 1,
    device: str = "cpu",
    status: str = "completed",
    accuracies: tuple[float, ...] = (),
    config: dict[str, Any] | None = None,
    choices: dict[str, str] | None = None,
    **summary: Any,
) -> None:
    stages = [{"peak_memory_bytes": 1000 * (n + 1), "aux_fraction": 0.25 * n} for n in range(gpus)]
    metrics = [line(10 * n, a, seconds=2.0 * n) for n, a in enumerate(accuracies, 1)]
    write(
        folder,
        config={
            **CONFIG,
            **(config or {}),
            "choices": {**CHOICES, "schedule": schedule, **(choices or {})},
        },
        summary={
            "status": status,
            "schedule": schedule,
            "gpus": gpus,
            "threads": threads,
            "device": device,
            "emulated": False,
            "modules": 2,
            "steps": 20,
            "train": {"samples_per_second": rate},
            "pipeline": {"bubble_fraction": 0.125},
            "test": {"loss": 0.5, "accuracy": 0.75},
            "stages": stages,
            **summary,
        },
        metrics="".join(metrics),
    )


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(compare([folder])))))


def write(folder: Path, **files: object) -> Path:
    """Write a run directory: JSON for `config` and `summary`, text for `metrics` and `refused`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = folder / f"{name}.{'jsonl' if name in ('metrics', 'refused') else 'json'}"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def line(step: int, value: float | None, split: str = "test", **more: object) -> str:
    fields = {"step": step, "epoch": 1, "split": split, "module": None, "stage": 1, "loss": 0.5}
    return json.dumps({**fields, "accuracy": value, "samples_per_second": 1.0, **more}) + "\n"
