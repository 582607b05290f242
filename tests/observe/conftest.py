"""Fixtures and helpers for tests of trackers."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

LINE = {"epoch": 1, "split": "train", "module": None, "stage": 1, "loss": 1.5, "accuracy": 0.5}
STAGES: list[dict[str, Any]] = [
    {
        "index": index,
        "compute_fraction": 0.5,
        "aux_fraction": None,
        "starved_fraction": 0.25,
        "blocked_fraction": 0.125 * index,
        "memory_bytes": 1000,
    }
    for index in range(2)
]
SUMMARY: dict[str, Any] = {
    "status": "completed",
    "steps": 9,
    "gpus": 2,
    "devices": ["cpu", "cpu"],
    "test": {"loss": None, "accuracy": 0.75},
    "stages": [{"index": 0, "units": ["a", "b"]}],
}


def line(step: int, **changes: object) -> dict[str, Any]:
    """Return a line of `metrics.jsonl`, of a run that does two steps per second."""
    return {"step": step, **LINE, "samples_per_second": None, "seconds": step / 2, **changes}


def draw(path: Path) -> None:
    """Write a picture of 3 x 2 pixels."""
    Image.new("RGB", (3, 2), (255, 0, 0)).save(path)


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide everything that the user has configured for wandb."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
