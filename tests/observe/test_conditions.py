"""Which runs may be compared, and in which settings they differ."""

import json
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.observe.comparison import Comparison, compare
from ppll_cli.observe.groups import Group
from tests.observe.compared_runs import CHOICES, CONFIG, make, rows, write


def names(comparison: Comparison) -> list[str]:
    return [Group([row]).name for row in comparison.rows]


def differing(comparison: Comparison) -> list[str]:
    return [Group([row]).differs for row in comparison.rows]


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


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"config": {"batch_size": 32}}, "batch_size is 32 instead of 64"),
        ({"config": {"epochs": 9}}, "epochs is 9 instead of 2"),
        ({"config": {"precision": "bf16"}}, "precision is bf16 instead of fp32"),
        ({"config": {"model": {"depth": 8}}}, "model.depth is 8 instead of 4"),
        ({"choices": {"data": "svhn"}}, "data is svhn instead of digits"),
        ({"config": {"data_sha256": "b" * 64}}, "data.digest is bbbbbbbb instead of aaaaaaaa"),
        ({"config": {"data_sha256": "b" * 64, "data": {"pad": 2}}}, "data.pad is 2 instead of 4"),
        ({"config": {"data": {"pad": None}}}, "data.pad is null instead of 4"),
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
    assert found.rows[1].over_bp() == 1.5
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
    assert [row.over_bp() for row in found.rows] == [1.0, 1.5, None, 1.5]


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


@pytest.mark.parametrize(
    "other", [{"config": {"data": {"_target_": "d.D", "root": "/there"}}}, {"threads": 2}]
)
def test_runs_that_differ_in_irrelevant_settings_are_comparable(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    make(tmp_path / "0", "bp", gpus=1)
    make(tmp_path / "1", "ppll", **other)
    assert names(compare([tmp_path])) == ["0", "1"]


def test_different_settings_are_shown(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll", config={"optim": {"lr": 0.1}})
    make(tmp_path / "1", "bp", config={"optim": {"lr": 0.2}}, gpus=1)
    assert differing(compare([tmp_path])) == ["optim.lr=0.1", "optim.lr=0.2"]


def test_a_run_without_its_configuration_differs_in_no_setting(tmp_path: Path) -> None:
    """Its file is lost. Each setting of the other runs was listed as a difference from nothing."""
    for number in range(2):
        make(tmp_path / str(number), "ppll", config={"optim": {"lr": number + 0.5}})
    make(tmp_path / "2", "bp", gpus=1)
    (tmp_path / "2" / "config.json").unlink()
    assert differing(compare([tmp_path])) == ["optim.lr=0.5", "optim.lr=1.5", ""]


def test_runs_on_other_pictures_differ_in_their_folder(tmp_path: Path) -> None:
    """A sweep over folders of pictures showed no difference, and its runs were averaged."""
    for number in range(4):
        data = {"root": f"/{number % 2}"}
        digest = str(number % 2) * 64
        make(tmp_path / str(number), "ppll", config={"data": data, "data_sha256": digest})
    found = compare([tmp_path])
    assert differing(found) == ["data.root=/0", "data.root=/1"] * 2
    assert [group.names for group in found.groups] == ["0, 2", "1, 3"]


def test_recorded_values_that_are_not_settings_are_not_shown(tmp_path: Path) -> None:
    """Settings that change no result are not listed either.

    Runs that differ only in them are one group.
    """
    for number in range(2):
        recorded = {
            "classes": [str(number)],
            "weights_used": {"sha256": str(number)},
            "sha256": str(number),
            "max_minutes": 5 + number,
            "progress_limit": 60.0 + number,
            "timeline": bool(number),
            "objective": str(number),
            "seed": number,
        }
        make(tmp_path / str(number), "ppll", config=recorded)
    found = compare([tmp_path])
    assert differing(found) == ["seed=0", "seed=1"]
    assert len(found.groups) == 1


def test_a_different_option_is_named_instead_of_its_own_settings(tmp_path: Path) -> None:
    other = {"_target_": "l.Deep", "modules": 4, "depth": 2}
    make(tmp_path / "0", "ppll")
    make(tmp_path / "1", "ppll", config={"local": other}, choices={"local": "deep"})
    found = differing(compare([tmp_path]))
    assert found == ["local=greedy", "local=deep local.modules=4"]


def test_an_option_is_not_repeated_by_its_name(tmp_path: Path) -> None:
    for number, name in enumerate(("off", "stage")):
        config = {"recover": {"name": name}}
        make(tmp_path / str(number), "ppll", config=config, choices={"recover": name})
    assert differing(compare([tmp_path])) == ["recover=off", "recover=stage"]


def test_the_local_method_of_a_run_without_local_losses_is_not_shown(tmp_path: Path) -> None:
    make(tmp_path / "0", "bp", choices={"fba": "off"})
    make(tmp_path / "1", "ppll", choices={"local": "dgl", "fba": "off"})
    make(tmp_path / "2", "ppll", choices={"local": "fba", "fba": "on"})
    found = differing(compare([tmp_path]))
    assert found == ["", "local=dgl fba=off", "local=fba fba=on"]


def test_the_local_method_does_not_separate_runs_of_back_propagation(tmp_path: Path) -> None:
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


def test_a_refused_job_shows_only_overrides_that_differ(tmp_path: Path) -> None:
    """All overrides of the command were listed, `schedule` too, so the table was very wide."""
    config = {"epochs": 2, "batch_size": 64, "optim": {"lr": 0.001}, "compile": False}
    config["data"] = {"mean": [0.5], "folders": ["a b"]}
    make(tmp_path / "0", "bp", config=config)
    same = ["model=vit", "epochs=2", "optim.lr=1e-3", "++batch_size=64"]
    same += ["compile=False", "data.mean=[0.5]", "data.folders=['a b']"]  # as Hydra writes them
    for job, gpus in ((1, 0), (2, 99)):
        given = [*same, "schedule=ppll", "threads=3", "~tracker", f"gpus={gpus}"]
        with (tmp_path / "refused.jsonl").open("a") as file:
            file.write(json.dumps({"job": job, "overrides": given, "error": "no"}) + "\n")
    found = compare([tmp_path])
    assert [row.run.schedule for row in found.rows] == ["bp", "ppll", "ppll"]
    others = "threads=3 ~tracker"
    assert differing(found) == ["", f"{others} gpus=0", f"{others} gpus=99"]
