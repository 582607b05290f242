"""The scaling benchmark: its predictions, its runs, and its results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.cli.plan import SCHEDULES
from ppll_cli.config import settings
from ppll_cli.predict import timing
from scripts.benchmarks import scaling
from tests.conftest import compose_config

SMALL = ["model=vit", "model.depth=6", "model.dim=16", "model.heads=2", "data=synthetic"]
SMALL += ["data.size=8", "batch_size=8", "threads=1", "device=cpu"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_has_valid_settings(schedule: str) -> None:
    config, _ = compose_config([*scaling.MODEL, *scaling.RUN, f"schedule={schedule}", "gpus=2"])
    assert settings.parse(config).threads == 1


@pytest.mark.slow
def test_predictions_and_measurements_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A small model is really profiled. Its runs are replaced."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    monkeypatch.setattr(scaling, "MODEL", SMALL)
    monkeypatch.setattr(scaling, "GPUS", [2, 8])
    monkeypatch.setattr(scaling, "machine", lambda: {"gpus": [], "cores": 2})
    ran: list[str] = []
    rates = iter([10.0, 1.0, 30.0, 3.0, 20.0, 2.0])

    def run(overrides: Sequence[str], run_dir: Path) -> dict[str, Any]:
        ran.append(run_dir.name)
        return {"train": {"samples_per_second": next(rates)}}

    monkeypatch.setattr(scaling, "run", run)
    scaling.main([])
    assert ran == ["ppll-2", "gpipe-2"] * 3  # schedules take turns
    written = json.loads((tmp_path / scaling.RESULT).read_text())
    assert written.keys() == {"machine", "conditions", "rows"}
    assert written["conditions"]["overrides"] == SMALL
    rows = {(row["gpus"], row["schedule"]): row for row in written["rows"]}
    # Eight stages of two chunks each need more units than the model has.
    expected = {(gpus, name) for gpus in (2, 8) for name in SCHEDULES}
    assert rows.keys() == expected - {(8, "interleaved")}
    for row in rows.values():
        assert row["predicted_samples_per_second"] > 0
        assert 0 <= row["bubble"] < 1
    measured = {key: row["measured_samples_per_second"] for key, row in rows.items()}
    assert measured.pop((2, "ppll")) == 20.0
    assert measured.pop((2, "gpipe")) == 2.0
    assert set(measured.values()) == {None}
    assert rows[8, "ppll"]["speed_up_over_bp"] > rows[8, "pp"]["speed_up_over_bp"]


def test_a_long_benchmark_measures_every_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], list[int]]] = []

    def measure(schedules: list[str], numbers: list[int]) -> dict[tuple[int, str], float]:
        asked.append((schedules, numbers))
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setattr(scaling, "machine", lambda: {"gpus": [], "cores": 16})
    for arguments in ([], ["--long"]):
        with pytest.raises(KeyboardInterrupt):
            scaling.main(arguments)
    assert asked == [(["ppll", "gpipe"], [2]), (list(SCHEDULES), [2, 4, 8])]
