"""Labels of groups in a comparison's picture."""

from pathlib import Path

from ppll_cli.observe.comparison import compare
from ppll_cli.observe.comparison_labels import labels, shared, with_unit
from tests.observe.compared_runs import make


def test_labels_have_settings_and_no_folders(tmp_path: Path) -> None:
    long = tmp_path / "2026-11-28"
    make(long / "04-32-10", "bp", gpus=1, config={"replicas": 1})
    make(long / "04-33-10", "ppll", gpus=4, config={"replicas": 2}, choices={"local": "predsim"})
    make(long / "04-34-10", "ppll", config={"replicas": 1}, choices={"fba": "on"}, status="failed")
    assert labels(compare([tmp_path]).groups) == [
        "bp gpus=1 replicas=1",
        "ppll gpus=4 local=predsim fba=None replicas=2",
        "ppll gpus=2 local=greedy fba=on replicas=1 (failed)",
    ]


def test_labels_of_a_sweep_begin_with_the_numbers_of_jobs(tmp_path: Path) -> None:
    make(tmp_path / "0", "ll", gpus=1)
    make(tmp_path / "1", "ppll", gpus=1, config={"epochs": 3})
    make(tmp_path / "2", "ppll", gpus=1)
    assert labels(compare([tmp_path]).groups) == [
        "0: ll epochs=2",
        "1: ppll epochs=3 *",
        "2: ppll epochs=2",
    ]


def test_labels_of_equal_settings_have_the_whole_names_of_runs(tmp_path: Path) -> None:
    names = ["a" * 40 + "/0", "a" * 40 + "/1"]
    for name in names:
        make(tmp_path / name, "ppll")
    assert labels(compare([tmp_path], each=True).groups) == [f"ppll in {name}" for name in names]


def test_settings_that_all_runs_share_are_in_the_line_above(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll")
    make(tmp_path / "1", "gpipe", config={"batch_size": 32})
    groups = compare([tmp_path]).groups
    assert shared(groups) == "2 runs: model=vit data=digits epochs=2 device=cpu gpus=2"
    assert (
        shared(groups[:1])
        == "1 run: model=vit data=digits batch_size=64 epochs=2 device=cpu gpus=2"
    )


def test_a_damaged_setting_is_not_shared(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll", config={"epochs": [2]})
    make(tmp_path / "1", "gpipe")
    groups = compare([tmp_path]).groups
    assert shared(groups) == "2 runs: model=vit data=digits batch_size=64 device=cpu gpus=2"


def test_labels_have_the_number_of_runs_only_if_groups_differ(tmp_path: Path) -> None:
    """If all groups have equally many runs, the line above the panels says how many."""
    for number in range(4):
        schedule = "ll" if number < 2 else "ppll"
        make(tmp_path / str(number), schedule, gpus=1, config={"seed": number % 2})
    groups = compare([tmp_path]).groups
    assert labels(groups) == ["0, 1: ll", "2, 3: ppll"]
    assert shared(groups).startswith("4 runs in 2 groups of 2 seeds: model=vit ")
    make(tmp_path / "0", "ll", gpus=1, config={"seed": 1})
    assert shared(compare([tmp_path]).groups).startswith("4 runs in 2 groups of 2 runs: model=vit ")
    make(tmp_path / "0", "ll", gpus=1, config={"seed": 0})
    make(tmp_path / "4", "ppll", gpus=1, config={"seed": 2}, status="failed")
    groups = compare([tmp_path]).groups
    assert labels(groups) == ["0, 1: ll (2 completed)", "2-4: ppll (2 completed, 1 failed)"]
    assert shared(groups).startswith("5 runs in 2 groups: model=vit ")


def test_a_metric_has_its_unit() -> None:
    assert with_unit("test psnr") == "test psnr (dB)"
    assert with_unit("val accuracy") == "val accuracy (0 to 1)"
    assert with_unit("test distance") == "test distance"


def test_labels_have_names_and_tags_that_differ(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll", config={"name": "wide", "tags": ["new"]})
    make(tmp_path / "1", "ppll", config={"name": "deep", "tags": []})
    groups = compare([tmp_path]).groups
    assert labels(groups) == ["0: wide [new] ppll", "1: deep ppll"]
    assert shared(groups[:1]).startswith("1 run: name=wide model=vit ")
