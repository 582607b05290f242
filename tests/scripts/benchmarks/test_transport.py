"""The transport benchmark: its measurements."""

import json
from pathlib import Path

import pytest
import torch

from scripts.benchmarks import transport


@pytest.mark.slow
def test_measured_times_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The processes are real, but there are only few and small messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transport, "SIZES", [4096, 1 << 16])
    monkeypatch.setattr(transport, "BULK", 1 << 20)
    transport.main([])
    written = json.loads((tmp_path / transport.RESULT).read_text())
    assert written["machine"]["cores"] >= 1
    assert (written["cuda"] is None) == (not torch.cuda.is_available())
    assert [row["bytes"] for row in written["rows"]] == [4096, 1 << 16]
    for row in written["rows"]:
        assert all(value > 0 for value in row.values())
        assert row["ring_speed_over_memcpy"] == pytest.approx(row["memcpy"] / row["ring"])
        assert row["queue_time_over_ring"] == pytest.approx(row["queue"] / row["ring"])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("cpu", "cpu"),
        pytest.param(
            "cuda:0",
            f"cuda:{torch.cuda.device_count() - 1}",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="there is no CUDA device"
            ),
        ),
    ],
)
def test_an_edge_is_measured_for_each_transport(source: str, target: str) -> None:
    measured = transport.measure_edge(source, target, [4096, 1 << 16], 1 << 20, repetitions=5)
    assert (measured["source"], measured["target"]) == (source, target)
    assert [row["bytes"] for row in measured["rows"]] == [4096, 1 << 16]
    for row in [*measured["rows"], measured["bulk"]]:
        assert {"bytes", "copy", "ring", "queue"} <= row.keys()
        assert all(value > 0 for value in row.values())
    bulk = measured["bulk"]
    assert bulk["ring_speed_over_copy"] == pytest.approx(bulk["copy"] / bulk["ring"])


def test_results_of_cuda_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    # the queue cannot be used between all devices
    row = {"bytes": 4096.0, "copy": 1e-5, "ring": 1e-4}
    bulk = {**row, "ring_speed_over_copy": 0.1}
    cuda = {"source": "cuda:0", "target": "cuda:1", "rows": [row], "bulk": bulk}
    transport._print({"rows": [], "cuda": cuda})
    printed = capsys.readouterr().out
    assert "cuda:0 to cuda:1" in printed
    assert "0.100 ms" in printed
    assert "bulk: 0.10 of a copy's speed" in printed
