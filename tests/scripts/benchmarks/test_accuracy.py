"""The accuracy benchmark: what it runs, and that it goes on where it was stopped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config import settings
from scripts.benchmarks import accuracy, runs, trials
from scripts.benchmarks.runs import RunFailedError
from tests.conftest import compose_config

EVERY = ["bp", *accuracy.METHODS]
TABLE = accuracy.rows(accuracy.SHORT, EVERY)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.speed.name)
def test_what_it_runs_composes(row: accuracy.Row) -> None:
    for trial in filter(None, (row.trained, row.speed)):
        config, choices = compose_config(list(trial.overrides))
        parsed = settings.parse(config)
        assert parsed.threads is not None
        if row.method in accuracy.METHODS:
            assert len(parsed.local["cuts"]) + 1 == row.modules
            assert choices["schedule"] == ("ll" if trial == row.trained else "ppll")


def test_every_row_has_the_same_budget() -> None:
    speed = [row.speed for row in TABLE]
    trained = [row.trained for row in TABLE if row.trained]
    assert len({trial.name for trial in speed}) == len(TABLE) == 2 + 7 * 3
    budget = (*accuracy.COMMON, *accuracy.SHORT)
    assert all(trial.overrides[: len(budget)] == budget for trial in [*speed, *trained])
    assert [row.method for row in TABLE if not row.trained] == ["bp, all threads"]


SUMMARY = {
    "status": "completed",
    "steps": 9,
    "git_commit": None,
    "test": {"loss": 0.5, "accuracy": 0.75},
    "per_module": [
        {"params": 1, "aux_params": 2000, "flops": 10, "aux_flops": 5, "test": {"accuracy": 0.5}},
        {"params": 1, "aux_params": 0, "flops": 10, "aux_flops": 0, "test": {"accuracy": 0.75}},
    ],
    "train": {"samples_per_second": 123.4},
    "stages": [
        {"peak_memory_bytes": 5e6, "aux_fraction": 0.25},
        {"peak_memory_bytes": None, "aux_fraction": None},
    ],
    "pipeline": {"bubble_fraction": 0.1},
    "edges": [{"bytes_sent": 7}],
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the folders of what was run; nothing is run really."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def run(overrides: Sequence[str], run_dir: Path) -> dict[str, Any]:
        names.append(run_dir.name)
        if len(names) == 3:
            raise RunFailedError("the third")
        return SUMMARY

    monkeypatch.setattr(trials, "run", run)
    return names


def test_it_goes_on_where_it_was_stopped(ran: list[str]) -> None:
    with pytest.raises(RunFailedError):
        accuracy.main(["--methods", "greedy", "--jobs", "1"])
    assert ran == ["greedy-2-trained", "greedy-4-trained", "greedy-8-trained"]
    accuracy.main(["--methods", "greedy", "--jobs", "1"])
    assert ran[3:] == ["greedy-8-trained", *(f"greedy-{k}-speed" for k in (2, 4, 8))]
    accuracy.main(["--methods", "greedy"])
    assert len(ran) == 7
    written = json.loads(Path("outputs/benchmark/accuracy.json").read_text())
    row = written["rows"]["greedy 2 trained"]
    assert row["machine"]["cores"] >= 1
    assert row["module_tests"] == [{"accuracy": 0.5}, {"accuracy": 0.75}]
    table = Path("outputs/benchmark/accuracy.md").read_text()
    assert "| greedy | 2 | 0.7500 | 2,000 | 25% of the backbone | 123 | 5 / ? |" in table


def test_other_settings_are_other_results(ran: list[str]) -> None:
    accuracy.main(["--methods", "bp", "--skip", "speed", "--jobs", "1"])
    assert ran == ["bp-1-trained"]
    accuracy.main(["--methods", "bp", "--skip", "speed", "--jobs", "1", "--long"])
    assert ran == ["bp-1-trained"] * 2


def test_another_program_makes_other_results(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy.main(["--methods", "bp", "--skip", "speed", "--jobs", "1"])
    monkeypatch.setattr(runs, "source", lambda: "another")
    accuracy.main(["--methods", "bp", "--skip", "speed", "--jobs", "1"])
    assert ran == ["bp-1-trained"] * 2
