"""The benchmark of the host's own time: it trains in the worker and in a bare loop."""

import json
from pathlib import Path

import pytest
import torch

from scripts.benchmarks import host


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Write results to a temporary folder, and do not change the threads of this process."""
    monkeypatch.setattr(host, "RESULT", tmp_path / "benchmark" / "host.json")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def test_every_optimizer_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[list[str]] = []

    def measure(overrides: list[str], blocks: int) -> dict[str, float]:
        measured.append(overrides)
        return {"own_ms": 0.25, "worker_ms": 1.25, "torch_ms": 1.0, "steps": 50 * blocks}

    monkeypatch.setattr(host, "measure", measure)
    host.main(["device=cpu"])
    assert all(overrides[-1] == "device=cpu" for overrides in measured)
    written = json.loads(host.RESULT.read_text())
    assert list(written["rows"]) == ["adamw", "sgd", "adamw, clipped"]
    assert written["rows"]["sgd"]["steps"] == 600
    assert "0.250" in capsys.readouterr().out


def test_the_worker_and_the_bare_loop_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "BLOCK", 4)
    few = f"data.train_samples={4 * host.BATCH_SIZE}"
    row = host.measure([*host.OVERRIDES, few, "optim=sgd", "device=cpu"], blocks=1)
    assert row["steps"] == host.BLOCK
    assert row["worker_ms"] > 0
    assert row["torch_ms"] > 0
    assert row["own_ms"] == row["worker_ms"] - row["torch_ms"]
