"""Comparison of runs: the numbers, and which runs may be compared."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.observe.comparison import Comparison, compare
from ppll_cli.observe.comparison_tables import as_csv
from ppll_cli.observe.groups import Group
from tests.conftest import Runner
from tests.observe.test_runs import line, write

CONFIG: dict[str, Any] = {
    "model": {"_target_": "m.M", "depth": 4},
    "data": {"_target_": "d.D", "root": "/here"},
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


def names(comparison: Comparison) -> list[str]:
    return [Group([row]).name for row in comparison.rows]


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
    assert not [note for note in compare([tmp_path]).notes if "flatters" in note]


def test_local_learning_is_compared_only_with_the_same_modules(tmp_path: Path) -> None:
    make(tmp_path / "0", "ll", 50.0, gpus=1)
    make(tmp_path / "1", "ppll", 100.0, modules=4)
    make(tmp_path / "2", "ppll", 100.0, config={"local": {"_target_": "l.Other"}})
    make(tmp_path / "3", "ppll", 100.0)
    make(tmp_path / "4", "ppll", 100.0, config={"fba": {"enabled": True}})
    assert [row["speed_up_over_ll"] for row in rows(tmp_path)] == ["1.0", "", "", "2.0", ""]


def test_modules_are_compared_by_their_cuts(tmp_path: Path) -> None:
    """Modules may be given by number, by default or by a partition.

    They are equal if their cuts are.
    """
    make(tmp_path / "0", "ll", 50.0, gpus=1, config={"cuts": ["a"]})
    asked = {"_target_": "l.L", "modules": 2}
    make(tmp_path / "1", "ppll", 100.0, config={"cuts": ["a"], "local": asked})
    make(tmp_path / "2", "ppll", 100.0, config={"cuts": ["b"]})
    parts = [{"units": ["stem", "x"]}, {"units": ["a", "head"]}]
    make(tmp_path / "3", "ppll", 100.0, config={"cuts": None}, per_module=parts)
    assert [row["speed_up_over_ll"] for row in rows(tmp_path)] == ["1.0", "2.0", "", "2.0"]


def test_a_note_says_that_bp_had_fewer_threads_on_cpu(tmp_path: Path) -> None:
    make(tmp_path / "bp", "bp", 80.0, gpus=1)
    make(tmp_path / "ppll", "ppll", 120.0)
    notes = [note for note in compare([tmp_path]).notes if "flatters" in note]
    assert notes == [
        "x bp flatters ppll (2 threads against 1): for a fair comparison on a CPU, add "
        "back-propagation with all the threads: schedule=bp gpus=1"
    ]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"config": {"batch_size": 32}}, "batch_size is 32 instead of 64"),
        ({"config": {"epochs": 9}}, "epochs is 9 instead of 2"),
        ({"config": {"precision": "bf16"}}, "precision is bf16 instead of fp32"),
        ({"config": {"model": {"depth": 8}}}, "model.depth is 8 instead of 4"),
        ({"choices": {"data": "svhn"}}, "data is svhn instead of digits"),
        ({"device": "cuda"}, "device is cuda instead of cpu"),
        ({"emulated": True}, "emulated is true instead of false"),
        ({"config": {"compile": True}}, "compile is true instead of false"),
        ({"steps": 40}, "steps is 40 instead of 20"),
    ],
)
def test_a_run_that_is_not_comparable_is_marked_and_left_out(
    tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    make(tmp_path / "0", "bp", 100.0, gpus=1, threads=2, accuracies=(0.5,))
    make(tmp_path / "1", "ppll", 150.0, accuracies=(0.75,))
    make(tmp_path / "2", "bp", 1000.0, gpus=1, accuracies=(0.1,), **other)
    found = compare([tmp_path])
    assert names(found) == ["0", "1", "2*"]
    assert f"* 2 is not comparable to most runs: {said}" in found.notes
    assert found.rows[1].over_bp == 1.5
    assert found.target == 0.5
    assert [row["comparable"] for row in rows(tmp_path)] == ["True", "True", "False"]


def test_unknown_settings_do_not_make_a_run_incomparable(tmp_path: Path) -> None:
    """A run that has just begun has no device yet, and a run of an older program has fewer keys."""
    make(tmp_path / "0", "bp", gpus=1)
    make(tmp_path / "1", "ppll", 150.0, config={"model": {"_target_": "m.M", "depth": 4, "new": 1}})
    write(tmp_path / "2", config={**CONFIG, "choices": {**CHOICES, "schedule": "ll"}})
    make(tmp_path / "3", "ppll", 150.0)
    (tmp_path / "3" / "config.json").unlink()
    found = compare([tmp_path])
    assert names(found) == ["0", "1", "2", "3"]
    assert [row.over_bp for row in found.rows] == [1.0, 1.5, None, 1.5]


def test_a_different_option_is_named_without_its_settings(tmp_path: Path) -> None:
    make(tmp_path / "0", "bp", gpus=1)
    make(tmp_path / "1", "ppll")
    other = {"config": {"model": {"depth": 8}}, "choices": {"model": "resnet32"}}
    make(tmp_path / "2", "ppll", **other)  # type: ignore[arg-type]
    assert [*compare([tmp_path]).rows[2].unequal] == ["model"]


def test_ended_runs_decide_which_runs_are_comparable(tmp_path: Path) -> None:
    for number, device in enumerate(["cuda", "cpu", "cpu"]):
        make(tmp_path / str(number), "ppll", device=device)
    for number in (3, 4, 5):
        write(tmp_path / str(number), config={**CONFIG, "choices": CHOICES})
    assert names(compare([tmp_path])) == ["0*", "1", "2", "3", "4", "5"]


def test_a_note_names_the_baseline(tmp_path: Path) -> None:
    make(tmp_path / "slow", "bp", 80.0, gpus=1)
    make(tmp_path / "fast", "bp", 100.0, gpus=1, threads=2)
    make(tmp_path / "ppll", "ppll", 150.0)
    first = compare([tmp_path]).notes[0]
    said = "x bp: speed-up over the fastest back-propagation under the same conditions, fast (2"
    assert first == f"{said} threads)"


@pytest.mark.parametrize(
    "other", [{"config": {"data": {"_target_": "d.D", "root": "/there"}}}, {"threads": 2}]
)
def test_runs_that_differ_in_irrelevant_settings_are_comparable(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    make(tmp_path / "0", "bp", gpus=1)
    make(tmp_path / "1", "ppll", **other)
    assert names(compare([tmp_path])) == ["0", "1"]


def test_the_target_is_a_value_that_all_comparable_runs_reached(tmp_path: Path) -> None:
    """Timing each run to its own last value would favour runs that end badly."""
    make(tmp_path / "0", "bp", gpus=1, accuracies=(0.5, 0.75, 0.875))
    make(tmp_path / "1", "ppll", accuracies=(0.25, 0.5, 0.8, 0.7))
    make(tmp_path / "2", "ll", gpus=1, accuracies=(0.5, 0.6))
    found = compare([tmp_path])
    assert found.target == 0.6
    assert [row.seconds_to_target for row in found.rows] == [4.0, 6.0, 4.0]
    assert [row.best for row in found.rows] == [0.875, 0.8, 0.6]


def test_a_run_that_did_not_complete_sets_no_target(tmp_path: Path) -> None:
    """The last value of an interrupted run is accidental."""
    make(tmp_path / "0", "bp", gpus=1, accuracies=(0.5, 0.75))
    make(tmp_path / "1", "ppll", accuracies=(0.1,), status="interrupted")
    make(tmp_path / "2", "ppll", accuracies=(0.8,), status="interrupted")
    found = compare([tmp_path])
    assert found.target == 0.75
    assert [row.seconds_to_target for row in found.rows] == [4.0, None, 2.0]


def test_a_run_with_another_metric_has_no_time_to_the_target(tmp_path: Path) -> None:
    make(tmp_path / "0", "bp", gpus=1, accuracies=(0.5, 0.75))
    make(tmp_path / "1", "ppll", accuracies=(0.75,))
    make(tmp_path / "2", "ppll", accuracies=(30.0,))
    file = tmp_path / "2" / "metrics.jsonl"
    file.write_text(file.read_text().replace("accuracy", "psnr"))
    found = compare([tmp_path])
    assert (found.metric, found.target) == ("test accuracy", 0.75)
    assert [row.seconds_to_target for row in found.rows] == [4.0, 2.0, None]
    said = "metric is test psnr instead of test accuracy"
    assert f"* 2 is not comparable to most runs: {said}" in found.notes


def test_different_settings_are_shown(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll", config={"optim": {"lr": 0.1}})
    make(tmp_path / "1", "bp", config={"optim": {"lr": 0.2}}, gpus=1)
    assert [Group([row]).differs for row in compare([tmp_path]).rows] == [
        "optim.lr=0.1",
        "optim.lr=0.2",
    ]


def test_recorded_values_that_are_not_settings_are_not_shown(tmp_path: Path) -> None:
    """Settings that change no result are not listed either.

    Runs that differ only in them are one group.
    """
    for number in range(2):
        recorded = {
            "classes": [str(number)],
            "weights_used": {"sha256": str(number)},
            "data_sha256": str(number),
            "sha256": str(number),
            "max_minutes": 5 + number,
            "objective": str(number),
            "seed": number,
        }
        make(tmp_path / str(number), "ppll", config=recorded)
    found = compare([tmp_path])
    assert [Group([row]).differs for row in found.rows] == ["seed=0", "seed=1"]
    assert len(found.groups) == 1


def test_a_different_option_is_named_instead_of_its_own_settings(tmp_path: Path) -> None:
    other = {"_target_": "l.Deep", "modules": 4, "depth": 2}
    make(tmp_path / "0", "ppll")
    make(tmp_path / "1", "ppll", config={"local": other}, choices={"local": "deep"})
    found = [Group([row]).differs for row in compare([tmp_path]).rows]
    assert found == ["local=greedy", "local=deep local.modules=4"]


def test_an_option_is_not_repeated_by_its_name(tmp_path: Path) -> None:
    for number, name in enumerate(("off", "stage")):
        config = {"recover": {"name": name}}
        make(tmp_path / str(number), "ppll", config=config, choices={"recover": name})
    assert [Group([row]).differs for row in compare([tmp_path]).rows] == [
        "recover=off",
        "recover=stage",
    ]


def test_a_note_names_runs_in_which_stages_restarted(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll")
    make(tmp_path / "1", "ppll", restarts=[{"stage": 0}, {"stage": 1}])
    make(tmp_path / "2", "ppll", restarts=[])
    make(tmp_path / "3", "ppll", restarts="damaged")
    (note,) = [note for note in compare([tmp_path]).notes if "restart" in note]
    assert note == "stages restarted, which may have cost time: 1 (2 restarts)"


def test_the_local_method_of_a_run_without_local_losses_is_not_shown(tmp_path: Path) -> None:
    make(tmp_path / "0", "bp", choices={"fba": "off"})
    make(tmp_path / "1", "ppll", choices={"local": "dgl", "fba": "off"})
    make(tmp_path / "2", "ppll", choices={"local": "fba", "fba": "on"})
    found = [Group([row]).differs for row in compare([tmp_path]).rows]
    assert found == ["", "local=dgl fba=off", "local=fba fba=on"]


def test_the_local_method_does_not_separate_runs_of_back_propagation(
    tmp_path: Path,
) -> None:
    other = {"_target_": "l.Other", "modules": 4}
    for schedule in ("bp", "ppll", "my_own"):
        make(tmp_path / schedule / "0", schedule, config={"seed": 0})
        folder, recorded = tmp_path / schedule / "1", {"seed": 1, "local": other}
        make(folder, schedule, config=recorded, choices={"local": "dgl"})
    found = compare([tmp_path])
    groups = {group.first.run.schedule: len(group.rows) for group in found.groups}
    assert groups == {"bp": 2, "my_own": 1, "ppll": 1}
    differs = {row.run.name: Group([row]).differs for row in found.rows}
    assert differs["bp/1"] == "seed=1"
    assert "local.modules=4" in differs["my_own/1"]


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": "x"},
        {"steps": None},
        {"test": 3},
        {"train": []},
        {"per_module": [{}, 7]},
        {"stages": [1]},
    ],
)
def test_wrong_values_in_a_summary_count_as_unknown(tmp_path: Path, damage: dict[str, Any]) -> None:
    make(tmp_path / "0", "ppll")
    make(tmp_path / "1", "ppll", config={"seed": 1}, **damage)
    assert [row.run.name for row in compare([tmp_path]).rows] == ["0", "1"]


@pytest.mark.parametrize("choices", [[], "ppll", 3])
def test_a_run_with_a_damaged_configuration_is_not_listed(tmp_path: Path, choices: Any) -> None:
    make(tmp_path / "0", "ppll")
    write(tmp_path / "1", config={**CONFIG, "choices": choices}, summary={})
    assert [row.run.name for row in compare([tmp_path]).rows] == ["0"]


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
    assert (one.over_bp, one.unequal, other.unequal) == (1.0, {}, {})
    assert other.over_bp is not None
    rates = [each.summary["train"]["samples_per_second"] for each in (ppll, bp)]
    assert other.over_bp == rates[0] / rates[1]
    assert other.best == ppll.summary["test"]["accuracy"]
    assert other.run.evaluations[0].seconds is not None
    assert 0 < other.run.evaluations[0].seconds <= ppll.summary["train"]["seconds"]
