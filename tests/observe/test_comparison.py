"""Comparison of runs: the numbers, and which runs may be compared."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.leaves.files import open_regular
from ppll_cli.observe.comparison import Comparison, compare
from ppll_cli.observe.comparison_picture import points
from ppll_cli.observe.comparison_tables import as_markdown
from ppll_cli.observe.groups import Group
from tests.conftest import Runner
from tests.observe.compared_runs import CHOICES, CONFIG, make, rows, write


def test_speed_ups_are_relative_to_the_fastest_comparable_baseline(tmp_path: Path) -> None:
    make(tmp_path / "0", "bp", 80.0, gpus=1)
    make(tmp_path / "1", "bp", 100.0, gpus=1, threads=2)
    make(tmp_path / "2", "ll", 50.0, gpus=1)
    make(tmp_path / "3", "gpipe", 120.0)
    make(tmp_path / "4", "ppll", 150.0)
    found = rows(tmp_path)
    assert [row["speed_up_over_bp"] for row in found] == ["0.8", "1.0", "0.5", "1.2", "1.5"]
    assert [row["speed_up_over_ll"] for row in found] == ["1.6", "2.0", "1.0", "2.4", "3.0"]
    assert [row["threads"] for row in found] == ["1", "2", "1", "1", "1"]
    assert [row["peak_memory_bytes"] for row in found] == ["1000", "1000", "1000", "2000", "2000"]
    assert [row["aux_fraction"] for row in found] == ["0.0", "0.0", "0.0", "0.125", "0.125"]
    assert not [note for note in compare([tmp_path]).notes if "is too high for" in note]


def test_a_note_says_that_bp_had_fewer_threads_on_cpu(tmp_path: Path) -> None:
    make(tmp_path / "bp", "bp", 80.0, gpus=1)
    make(tmp_path / "ppll", "ppll", 120.0)
    notes = [note for note in compare([tmp_path]).notes if "is too high for" in note]
    assert notes == [
        "x bp is too high for row ppll (2 threads against 1). For a fair comparison on a CPU, add "
        "back-propagation with all the threads: schedule=bp gpus=1"
    ]


def test_the_threads_of_all_replicas_of_bp_count(tmp_path: Path) -> None:
    """Data parallelism on two workers uses as many threads as a pipeline of two stages."""
    make(tmp_path / "bp", "bp", 80.0, gpus=2)
    make(tmp_path / "ppll", "ppll", 120.0)
    (speed,) = (note for note in compare([tmp_path]).notes if note.startswith("x bp"))
    assert speed.endswith("row bp (2 threads)")


def test_a_note_names_the_baseline(tmp_path: Path) -> None:
    make(tmp_path / "slow", "bp", 80.0, gpus=1)
    make(tmp_path / "fast", "bp", 100.0, gpus=1, threads=2)
    make(tmp_path / "ppll", "ppll", 150.0)
    first = compare([tmp_path]).notes[0]
    said = "x bp: speed-up over the fastest back-propagation under the same conditions: row fast (2"
    assert first == f"{said} threads)"


def test_the_target_is_a_value_that_all_comparable_runs_reached(tmp_path: Path) -> None:
    """Timing each run to its own last value would favour runs that end badly."""
    make(tmp_path / "0", "bp", gpus=1, accuracies=(0.5, 0.75, 0.875))
    make(tmp_path / "1", "ppll", accuracies=(0.25, 0.5, 0.8, 0.7))
    make(tmp_path / "2", "ll", gpus=1, accuracies=(0.5, 0.6))
    found = compare([tmp_path])
    assert found.target == 0.6
    assert [row.seconds_to_target for row in found.rows] == [4.0, 6.0, 4.0]
    assert [row.best() for row in found.rows] == [0.875, 0.8, 0.6]


def test_lower_values_of_some_metrics_are_better(tmp_path: Path) -> None:
    values = {"0": (8.0, 2.0), "1": (3.0, 6.0), "2": (6.0, 5.0)}
    for name, each in values.items():
        make(tmp_path / name, "ppll", accuracies=each, config={"lower_is_better": True})
    found = compare([tmp_path])
    assert found.target == 6.0
    assert [row.seconds_to_target for row in found.rows] == [4.0, 2.0, 2.0]
    assert [row.best() for row in found.rows] == [2.0, 3.0, 5.0]


def test_a_run_that_did_not_complete_sets_no_target(tmp_path: Path) -> None:
    """The last value of an interrupted run is accidental."""
    make(tmp_path / "0", "bp", gpus=1, accuracies=(0.5, 0.75))
    make(tmp_path / "1", "ppll", accuracies=(0.1,), status="interrupted")
    make(tmp_path / "2", "ppll", accuracies=(0.8,), status="interrupted")
    found = compare([tmp_path])
    assert found.target == 0.75
    assert [row.seconds_to_target for row in found.rows] == [4.0, None, 2.0]


def test_a_run_with_another_metric_has_no_values_of_the_usual_metric(tmp_path: Path) -> None:
    make(tmp_path / "0", "bp", gpus=1, accuracies=(0.5, 0.75))
    make(tmp_path / "1", "ppll", accuracies=(0.75,))
    make(tmp_path / "2", "ppll", accuracies=(30.0,))
    file = tmp_path / "2" / "metrics.jsonl"
    file.write_text(file.read_text().replace("accuracy", "psnr"))
    found = compare([tmp_path])
    assert (found.metric, found.target) == ("test accuracy", 0.75)
    assert [row.seconds_to_target for row in found.rows] == [4.0, 2.0, None]
    assert [row.best() for row in found.rows] == [0.75, 0.75, None]
    assert points(found.groups[2]) == []
    said = "metric is test psnr instead of test accuracy"
    assert f"* 2 is not comparable to most runs: {said}" in found.notes


def test_a_note_names_runs_in_which_stages_restarted(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll")
    make(tmp_path / "1", "ppll", restarts=[{"stage": 0}, {"stage": 1}])
    make(tmp_path / "2", "ppll", restarts=[])
    make(tmp_path / "3", "ppll", restarts="damaged")
    (note,) = [note for note in compare([tmp_path]).notes if "restart" in note]
    assert note == "stages restarted, which may have cost time: 1 (2 restarts)"


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": "x"},
        {"steps": None},
        {"test": 3},
        {"train": []},
        {"per_module": [{}, 7]},
        {"stages": [1]},
        {"stages": [{"peak_memory_bytes": float("inf"), "aux_fraction": float("nan")}]},
        {"train": {"samples_per_second": float("nan")}},
        {"train": {"samples_per_second": 1e-320}},
        {"pipeline": {"bubble_fraction": 10**400}},
    ],
)
def test_wrong_values_in_a_summary_count_as_unknown(tmp_path: Path, damage: dict[str, Any]) -> None:
    make(tmp_path / "0", "ppll", config={"seed": 0})
    make(tmp_path / "1", "ppll", config={"seed": 1})
    make(tmp_path / "2", "ppll", config={"seed": 2}, **damage)
    make(tmp_path / "3", "bp", **damage)
    found = compare([tmp_path])
    assert [row.run.name for row in found.rows] == ["0", "1", "2", "3"]
    assert as_markdown(found)


@pytest.mark.parametrize("choices", [[], "ppll", 3])
def test_a_run_with_a_damaged_configuration_is_not_listed(tmp_path: Path, choices: Any) -> None:
    make(tmp_path / "0", "ppll")
    write(tmp_path / "1", config={**CONFIG, "choices": choices}, summary={})
    assert [row.run.name for row in compare([tmp_path]).rows] == ["0"]


def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word, another user's completed run was shown as running, and without speed."""
    make(tmp_path / "0", "ppll")
    unread = [tmp_path / "0" / "summary.json"]

    def opened(path: Path, *arguments: Any) -> Any:
        if path in unread:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_regular(path, *arguments)

    monkeypatch.setattr("ppll_cli.leaves.files.open_regular", opened)
    monkeypatch.setattr(os, "access", lambda path, _: path not in unread)
    found = compare([tmp_path])
    assert [row.run.status for row in found.rows] == ["running"]
    note = "0 is shown with missing or wrong values, because {} cannot be read"
    assert note.format("summary.json") in found.notes

    unread.append(tmp_path / "0" / "config.json")
    found = compare([tmp_path])
    assert note.format("config.json and summary.json") in found.notes


def test_a_run_with_more_steps_than_its_summary_is_running(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll", status="interrupted", steps=0, accuracies=(0.5,))
    (row,) = compare([tmp_path]).rows
    assert row.run.status == "running"


def test_failed_interrupted_and_refused_runs_are_listed(tmp_path: Path) -> None:
    make(tmp_path / "0", "bp", gpus=1)
    make(tmp_path / "1", "gpipe", None, status="failed", error="stage 1: it broke\nat length")
    make(tmp_path / "2", "ppll", 50.0, status="interrupted")
    write(tmp_path / "3", config={**CONFIG, "choices": {**CHOICES, "schedule": "ll"}})
    write(tmp_path, refused='{"job": 4, "overrides": ["gpus=0"], "error": "gpus=0: none"}\n')
    found = compare([tmp_path])
    statuses = [row.run.status for row in found.rows]
    assert statuses == ["completed", "failed", "interrupted", "running", "refused"]
    assert [row.run.name for row in found.failed] == ["1", "4"]
    assert "1 failed: stage 1: it broke" in found.notes
    assert "4 refused: gpus=0: none" in found.notes
    assert Group([found.rows[4]]).differs == "gpus=0"
    assert [len(row.bps) for row in found.rows] == [1, 1, 1, 1, 0]  # a refused run has no baseline


def test_a_comparison_may_have_no_run(tmp_path: Path) -> None:
    found: Comparison = compare([tmp_path])
    assert (list(found.rows), found.failed, found.target) == ([], [], None)


@pytest.mark.slow
def test_trained_runs_can_be_compared(run: Runner, tmp_path: Path) -> None:
    small = ["model.depth=2", "max_steps=10", "data.eval_limit=8"]
    bp = run("schedule=bp", "gpus=1", *small)
    ppll = run("schedule=ppll", *small)
    one, other = compare([bp.run_dir, ppll.run_dir]).rows
    assert (one.run.name, other.run.name) == ("run-0", "run-1")
    assert (one.over_bp(), one.unequal, other.unequal) == (1.0, {}, {})
    assert other.over_bp() is not None
    rates = [each.summary["train"]["samples_per_second"] for each in (ppll, bp)]
    assert other.over_bp() == rates[0] / rates[1]
    assert other.best() == ppll.summary["test"]["accuracy"]
    assert other.run.evaluations[0].seconds is not None
    assert 0 < other.run.evaluations[0].seconds <= ppll.summary["train"]["seconds"]
