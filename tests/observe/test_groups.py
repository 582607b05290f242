"""Runs that differ only in their seed, and the numbers of such a group."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from ppll_cli.observe.comparison import Comparison, compare
from ppll_cli.observe.comparison_tables import as_csv, as_markdown, groups_as_csv
from ppll_cli.observe.groups import Spread, spread, within_noise
from tests.observe.compared_runs import CONFIG, make, write


def seeded(folder: Path, schedule: str, seed: int, rate: float = 100.0, **more: Any) -> None:
    config = {"seed": seed, **more.pop("config", {})}
    make(folder, schedule, rate, config=config, **more)


def names(found: Comparison) -> list[str]:
    return [group.names for group in found.groups]


def cells(found: Comparison, head: str) -> list[str]:
    """Return a column of the Markdown table."""
    lines = [line.strip("| ").split(" | ") for line in as_markdown(found).splitlines()]
    place = lines[0].index(head)
    return [line[place] for line in lines[2 : 2 + len(found.groups)]]


def test_runs_that_differ_only_in_their_seed_are_one_group(tmp_path: Path) -> None:
    for seed in range(3):
        seeded(tmp_path / str(2 * seed), "bp", seed, 90.0 + 10 * seed, gpus=1)
        accuracies = (0.5, 0.6 + 0.1 * seed)
        seeded(tmp_path / str(2 * seed + 1), "ppll", seed, 150.0, accuracies=accuracies)
    found = compare([tmp_path])
    assert names(found) == ["0, 2, 4", "1, 3, 5"]
    assert cells(found, "status") == ["3 completed", "3 completed"]
    assert cells(found, "samples/s") == ["100 ± 10 (3)", "150 ± 0 (3)"]
    assert cells(found, "x bp") == ["1.00 ± 0.10 (3)", "1.50 ± 0.00 (3)"]
    assert cells(found, "best test accuracy") == ["", "0.7000 ± 0.1000 (3)"]
    assert [group.differs for group in found.groups] == ["", ""]


def test_the_baseline_is_the_mean_of_its_seeds(tmp_path: Path) -> None:
    """If the fastest run were the baseline, every other run would look slow."""
    for seed, rate in enumerate((80.0, 100.0, 120.0)):
        seeded(tmp_path / str(seed), "bp", seed, rate, gpus=1)
    seeded(tmp_path / "3", "ppll", 0, 150.0)
    found = compare([tmp_path])
    assert [row.over_bp() for row in found.rows] == [0.8, 1.0, 1.2, 1.5]
    assert found.notes[0] == (
        "x bp: speed-up over the fastest back-propagation under the same conditions: row 0-2 "
        "(mean of 3 seeds, 1 thread)"
    )
    assert [row.over_bp() for row in compare([tmp_path], each=True).rows] == [0.8, 1.0, 1.2, 1.5]


def test_an_interrupted_bp_run_is_a_baseline_only_if_none_completed(tmp_path: Path) -> None:
    seeded(tmp_path / "0", "bp", 0, 100.0, gpus=1)
    lucky = {"optim": {"lr": 0.2}}
    seeded(tmp_path / "1", "bp", 1, 300.0, gpus=1, status="interrupted", config=lucky)
    seeded(tmp_path / "2", "ppll", 0, 150.0)
    assert compare([tmp_path]).rows[2].over_bp() == 1.5


@pytest.mark.parametrize(
    "other",
    [
        {"config": {"optim": {"lr": 0.2}}},
        {"config": {"epochs": 3}},
        {"config": {"local": {"_target_": "l.Other", "modules": None}}},
        {"config": {"schedule": {"_target_": "s.S", "microbatches": 8}}},
        {"config": {"name": "other"}},
        {"config": {"tags": ["other"]}},
        {"choices": {"local": "dgl"}},
        {"steps": 40},
        {"gpus": 4},
        {"threads": 2},
        {"device": "cuda"},
        {"per_module": [{"units": ["a"]}, {"units": ["b"]}]},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_another_group(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    parts = [{"units": ["a"]}, {"units": ["c"]}]
    same: dict[str, Any] = {
        "name": None,
        "tags": [],
        "schedule": {"_target_": "s.S", "microbatches": 4},
    }
    for seed in range(2):
        seeded(tmp_path / str(seed), "ppll", seed, config=same, per_module=parts)
    changed = {"per_module": parts, **other, "config": {**same, **other.get("config", {})}}
    seeded(tmp_path / "2", "ppll", 2, **changed)
    assert names(compare([tmp_path])) == ["0, 1", "2"]


def test_what_an_unused_recovery_has_recorded_does_not_separate_groups(tmp_path: Path) -> None:
    """Older runs have no group `recover`, or another default of `recover.every`."""
    recorded: list[dict[str, Any]] = [
        {},
        {"recover": {"name": "off", "tries": 10, "minutes": 60, "every": 16}},
        {"recover": {"name": "off", "tries": 10, "minutes": 60, "every": None}},
        {"recover": {"name": "stage", "tries": 10, "minutes": 60, "every": None}},
    ]
    for seed, config in enumerate(recorded):
        choices = {"recover": config["recover"]["name"]} if config else {}
        seeded(tmp_path / str(seed), "ppll", seed, config=config, choices=choices)
    found = compare([tmp_path])
    assert names(found) == ["0-2", "3"]
    assert [group.differs for group in found.groups] == ["recover=off", "recover=stage seed=3"]
    each = [group.differs for group in compare([tmp_path], each=True).groups]
    assert each == [*[f"recover=off seed={n}" for n in range(3)], "recover=stage seed=3"]


def test_older_names_of_options_do_not_separate_groups(tmp_path: Path) -> None:
    for seed, name in enumerate(("naive", "queue")):
        seeded(tmp_path / str(seed), "ppll", seed, choices={"transport": name})
    assert names(compare([tmp_path])) == ["0, 1"]


def test_names_that_differ_only_in_the_seed_are_one_group(tmp_path: Path) -> None:
    for seed in (0, 1, 10):
        seeded(tmp_path / str(seed), "ppll", seed, config={"name": f"vit-s{seed}"})
    seeded(tmp_path / "11", "ppll", 3, config={"name": "vit-s4"})
    assert names(compare([tmp_path])) == ["0, 1, 10", "11"]


def test_the_place_of_data_and_the_tracker_do_not_separate_groups(tmp_path: Path) -> None:
    seeded(tmp_path / "0", "ppll", 0)
    elsewhere = {"data": {"_target_": "d.D", "root": "/there"}, "tracker": {"_target_": "t.T"}}
    seeded(tmp_path / "1", "ppll", 1, config=elsewhere)
    resumed = {"max_steps": 10}  # the configuration has the value with which the run was started
    seeded(tmp_path / "2", "ppll", 2, config=resumed)
    assert names(compare([tmp_path])) == ["0-2"]


def test_a_digit_that_is_no_number_does_not_continue_a_range(tmp_path: Path) -> None:
    for seed, name in enumerate(("0", "1", "²")):
        seeded(tmp_path / name, "ppll", seed)
    assert names(compare([tmp_path])) == ["0, 1, ²"]


def test_a_group_has_a_baseline_only_if_all_its_runs_have_one(tmp_path: Path) -> None:
    """An older run may lack a condition in which the other runs of its group differ from bp.

    A mean speed-up would then be over fewer runs than the mean speed.
    """
    seeded(tmp_path / "0", "bp", 0, config={"recompute": False})
    seeded(tmp_path / "1", "ppll", 0, config={"recompute": True})
    seeded(tmp_path / "2", "ppll", 1, rate=200.0)
    found = compare([tmp_path])
    assert names(found) == ["0", "1, 2"]
    assert cells(found, "samples/s") == ["100", "150 ± 71 (2)"]
    assert cells(found, "x bp") == ["1.00", ""]
    assert [row.over_bp() for row in compare([tmp_path], each=True).rows] == [1.0, None, 2.0]


def test_runs_that_are_not_complete_are_counted_but_not_averaged(tmp_path: Path) -> None:
    seeded(tmp_path / "0", "ppll", 0, 100.0)
    seeded(tmp_path / "1", "ppll", 1, 900.0, status="failed", error="it broke", steps=3)
    seeded(tmp_path / "2", "ppll", 2, 110.0)
    seeded(tmp_path / "3", "ppll", 3, 900.0, status="interrupted", steps=7)
    write(tmp_path / "4", config={**CONFIG, "seed": 4, "choices": {"schedule": "ppll"}})
    found = compare([tmp_path])
    assert names(found) == ["0-4"]
    assert cells(found, "status") == ["2 completed, 1 failed, 1 interrupted, 1 running"]
    assert cells(found, "samples/s") == ["105 ± 7 (2)"]
    left = "not averaged, because not completed: 1 (failed), 3 (interrupted), 4 (running)"
    assert left in found.notes
    assert [row.run.name for row in found.failed] == ["1"]


def test_a_group_without_completed_runs_is_shown_run_by_run(tmp_path: Path) -> None:
    for seed in range(2):
        seeded(tmp_path / str(seed), "ppll", seed, 100.0 + seed, status="interrupted")
    found = compare([tmp_path])
    assert names(found) == ["0", "1"]
    assert cells(found, "samples/s") == ["100", "101"]


def test_runs_with_the_same_seed_count_as_one(tmp_path: Path) -> None:
    """Two equal runs have equal accuracies, as if there were no noise."""
    for number, (seed, rate) in enumerate(((0, 100.0), (0, 120.0), (1, 130.0))):
        seeded(tmp_path / str(number), "ppll", seed, rate)
    found = compare([tmp_path])
    assert cells(found, "samples/s") == ["120 ± 14 (2)"]
    assert "0-2: runs with the same seed (0) are averaged first, and count as one" in found.notes


def test_differences_within_noise_are_marked(tmp_path: Path) -> None:
    number = 0
    for schedule, accuracies in (
        ("bp", (0.90, 0.92, 0.94)),
        ("gpipe", (0.91, 0.93, 0.95)),
        ("ppll", (0.70, 0.72, 0.74)),
    ):
        for seed, accuracy in enumerate(accuracies):
            rate = {"bp": 100.0, "gpipe": 101.0, "ppll": 200.0}[schedule] + 5 * seed
            one = 1 if schedule == "bp" else 2
            place = tmp_path / str(number)
            reached = [0.1] * seed + [accuracy]
            seeded(place, schedule, seed, rate, gpus=one, accuracies=reached, steps=30)
            number += 1
    found = compare([tmp_path])
    assert [cell[-1] for cell in cells(found, "best test accuracy")] == [")", "~", ")"]
    assert cells(found, "s to test accuracy 0.7") == ["4.0 ± 2.0 (3)", *["4.0 ± 2.0 (3) ~"] * 2]
    assert [cell[-1] for cell in cells(found, "samples/s")] == [")", "~", ")"]
    assert [cell[-1] for cell in cells(found, "x bp")] == [")", "~", ")"]
    start = "~ marks values whose difference from row 0-2 may be noise"
    assert any(note.startswith(start) for note in found.notes)


@pytest.mark.parametrize("sign", [1, -1])
def test_without_back_propagation_groups_are_compared_with_the_best(
    tmp_path: Path, sign: int
) -> None:
    number = 0
    for method, base in (("greedy", 0.80), ("dgl", 0.90), ("predsim", 0.905)):
        for seed in range(3):
            known: dict[str, Any] = {
                "accuracies": (sign * (base + 0.01 * seed),),
                "choices": {"local": method},
                "config": {"lower_is_better": sign < 0},
            }
            seeded(tmp_path / str(number), "ppll", seed, **known)
            number += 1
    found = compare([tmp_path])
    assert [cell[-1] for cell in cells(found, "best test accuracy")] == [")", "~", ")"]
    start = "~ marks values whose difference from row 6-8 may be noise"
    assert any(note.startswith(start) for note in found.notes)
    assert cells(found, "settings") == ["local=greedy", "local=dgl", "local=predsim"]


def test_a_note_says_that_one_seed_shows_no_noise(tmp_path: Path) -> None:
    seeded(tmp_path / "0", "bp", 0, gpus=1)
    seeded(tmp_path / "1", "ppll", 0)
    (alone,) = [note for note in compare([tmp_path]).notes if note.startswith("one seed")]
    assert alone.endswith("such as seed=0,1,2, give one")
    seeded(tmp_path / "2", "ppll", 1)
    (alone,) = [note for note in compare([tmp_path]).notes if note.startswith("one seed")]
    assert alone.endswith("differences of row 0 are not tested")


def test_runs_can_be_shown_without_groups(tmp_path: Path) -> None:
    for seed in range(3):
        seeded(tmp_path / str(seed), "ppll", seed)
    found = compare([tmp_path], each=True)
    assert names(found) == ["0", "1", "2"]
    assert [group.differs for group in found.groups] == ["seed=0", "seed=1", "seed=2"]
    assert not [note for note in found.notes if "±" in note]


def test_a_group_of_long_names_shows_one_name_and_a_count(tmp_path: Path) -> None:
    for seed in range(3):
        seeded(tmp_path / f"2026-11-28-{seed}/12-00-00", "ppll", seed)
    assert names(compare([tmp_path])) == ["2026-11-28-0/12-00-00 +2"]


def test_csv_files_have_numbers_of_runs_and_of_groups(tmp_path: Path) -> None:
    for seed in range(3):
        seeded(tmp_path / str(seed), "ppll", seed, 90.0 + 10 * seed)
    found = compare([tmp_path])
    runs = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [(row["run"], row["seed"]) for row in runs] == [("0", "0"), ("1", "1"), ("2", "2")]
    (group,) = csv.DictReader(io.StringIO(groups_as_csv(found)))
    assert (group["runs"], group["label"]) == ("0 1 2", "ppll")
    kinds = ("mean", "deviation", "seeds")
    assert [group[f"samples_per_second_{kind}"] for kind in kinds] == ["100.0", "10.0", "3"]
    assert [group[f"speed_up_over_bp_{kind}"] for kind in kinds] == ["", "", ""]


# Means, deviations, and the test whether two groups of values differ


def test_the_deviation_is_a_sample_deviation() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert found is not None
    assert (found.mean, found.size) == (7 / 3, 3)
    assert found.deviation == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert spread([3.0]) == Spread(3.0, None, 1)
    assert spread([]) is None


values = st.lists(st.integers(0, 40).map(float), min_size=2, max_size=40)


# scipy warns about groups of equal values. Whole numbers have an exact mean.
@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")
@given(values, values)
@example([0.0, 2.0], [4.0, 6.0])  # 2 degrees of freedom; with 4, noise would not explain it
def test_the_test_is_welchs_test(one: list[float], other: list[float]) -> None:
    """The result equals that of scipy's own test, which computes a p-value."""
    mine, theirs = spread(one), spread(other)
    assert mine is not None
    assert theirs is not None
    if not mine.deviation and not theirs.deviation:
        assert within_noise(mine, theirs) is (one[0] == other[0])
        return
    p = stats.ttest_ind(one, other, equal_var=False).pvalue
    if abs(p - 0.05) > 1e-6:  # nearer to 5 %, rounding decides
        assert within_noise(mine, theirs) is bool(p > 0.05)


def test_with_more_seeds_the_same_difference_is_not_noise() -> None:
    few, many = ([0.90, 0.92], [0.90, 0.92] * 5)
    higher = [[value + 0.02 for value in each] for each in (few, many)]
    pairs = [(spread(one), spread(other)) for one, other in zip((few, many), higher, strict=True)]
    assert [within_noise(a, b) for a, b in pairs if a and b] == [True, False]


def test_one_value_is_not_enough_for_the_test() -> None:
    one, several = Spread(1.0, None, 1), Spread(9.0, 0.1, 3)
    assert within_noise(one, several) is None
    assert within_noise(several, one) is None
