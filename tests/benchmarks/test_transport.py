"""The transport benchmark: what it measures."""

import json
from pathlib import Path

import pytest

from ppll_cli.benchmarks import transport


def test_what_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With real processes, but small and few messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transport, "SIZES", [4096, 1 << 16])
    transport.main([])
    written = json.loads((tmp_path / transport.RESULT).read_text())
    assert written["machine"]["cores"] >= 1
    assert [row["bytes"] for row in written["rows"]] == [4096, 1 << 16]
    for row in written["rows"]:
        assert all(value > 0 for value in row.values())
        assert row["ring_speed_over_memcpy"] == pytest.approx(row["memcpy"] / row["ring"])
        assert row["naive_time_over_ring"] == pytest.approx(row["naive"] / row["ring"])
