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

SEEDS = [0, 1, 2]
CHOICES = accuracy.METHODS | accuracy.VARIANTS
TABLE = accuracy.rows(accuracy.SHORT, ["bp", *CHOICES], SEEDS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.speed.name)
def test_the_overrides_of_each_row_compose(row: accuracy.Row) -> None:
    for trial in (*row.trained[:1], row.speed):
        config, choices = compose_config(list(trial.overrides))
        parsed = settings.parse(config)
        assert parsed.threads is not None
        if row.method in CHOICES:
            assert len(parsed.local["cuts"]) + 1 == row.modules
            assert choices["schedule"] == ("ppll" if trial == row.speed else "ll")


def test_every_row_has_the_same_budget() -> None:
    trials = [trial for row in TABLE for trial in (*row.trained, row.speed)]
    assert len({trial.name for trial in trials}) == len(trials)
    for row in TABLE:
        budget = (*accuracy.COMMON, *accuracy.SHORT, f"model.depth={row.depth}")
        assert all(trial.overrides[: len(budget)] == budget for trial in (*row.trained, row.speed))
    assert {row.method for row in TABLE if not row.trained} == {*accuracy.ALONE} - {"bp"}
    assert all(len(row.trained) == len(SEEDS) for row in TABLE if row.method in CHOICES)


def test_variants_are_tried_with_one_model_and_cut() -> None:
    tried = {
        row.method: (row.depth, row.modules) for row in TABLE if row.method in accuracy.VARIANTS
    }
    assert tried == dict.fromkeys(accuracy.VARIANTS, accuracy.VARIANTS_OF)


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


LINES = [
    {"split": "train", "module": 0, "step": 5, "accuracy": 0.1},
    {"split": "train", "module": None, "step": 5, "accuracy": 0.5},
    {"split": "train", "module": None, "step": 9, "accuracy": 0.75},
    {"split": "test", "module": None, "step": 9, "accuracy": 0.25},
]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the folders of what was run; nothing is run really."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def run(overrides: Sequence[str], run_dir: Path, _: bool) -> dict[str, Any]:
        names.append(run_dir.name)
        if len(names) == 3:
            raise RunFailedError("the third")
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in LINES))
        return SUMMARY

    monkeypatch.setattr(trials, "run", run)
    return names


def run_benchmark(*arguments: str) -> None:
    accuracy.main([*arguments, "--jobs", "1"])


def test_a_benchmark_that_was_stopped_continues_with_the_missing_runs(ran: list[str]) -> None:
    greedy = ("--methods", "greedy", "--seeds", "0")
    trained = [f"resnet{depth}-greedy-{k}-seed-0" for depth, k in accuracy.MODULES]
    with pytest.raises(RunFailedError):
        run_benchmark(*greedy)
    assert ran == trained
    run_benchmark(*greedy)
    assert ran[4:] == [trained[2], *(f"resnet{d}-greedy-{k}-speed" for d, k in accuracy.MODULES)]
    run_benchmark(*greedy)
    assert len(ran) == 9
    written = json.loads(Path("outputs/benchmark/accuracy.json").read_text())
    row = written["rows"]["resnet20 greedy 4 seed 0"]
    assert row["machine"]["cores"] >= 1
    assert row["module_tests"] == [{"accuracy": 0.5}, {"accuracy": 0.75}]
    assert row["train_accuracy"] == [[5, 0.5], [9, 0.75]]
    table = Path("outputs/benchmark/accuracy.md").read_text()
    line = "| greedy | 4 | 0.7500 |  | 2,000 | 25% of the backbone | 123 | 5 / ? |  |"
    assert line in table


def test_all_methods_of_a_seed_are_trained_before_the_next_seed(ran: list[str]) -> None:
    ran.extend(["", "", ""])  # no run fails
    run_benchmark("--methods", "bp", "dgl", "--seeds", "3", "4", "--skip", "speed")
    assert [name[-1] for name in ran[3:]] == ["3"] * 6 + ["4"] * 6


def test_the_table_shows_means_and_the_difference_to_bp(ran: list[str]) -> None:
    ran.extend(["", "", ""])
    run_benchmark("--methods", "bp", "dgl", "--seeds", "0", "1")
    table = Path("outputs/benchmark/accuracy.md").read_text()
    assert "| bp | 1 | 0.7500 ± 0.0000 |  |" in table
    assert "| dgl | 16 | 0.7500 ± 0.0000 | +0.0000 |" in table
    seconds = 9 * accuracy.BATCH_SIZE / 123.4
    assert f"| 123 | 5 / ? | {seconds:.0f} |" in table


@pytest.mark.parametrize(
    ("rise", "steps"),
    [
        ([(5, 0.1), (10, 0.3), (15, 0.5)], 15),
        ([(5, 0.9), (10, 0.3), (15, 0.5)], 10),
        ([(5, 0.1), (10, 0.3), (15, 0.4)], None),
        ([(5, 0.9)], None),
    ],
)
def test_steps_to_an_accuracy_use_the_mean_of_two_neighbouring_lines(
    rise: list[tuple[int, float]], steps: int | None
) -> None:
    assert accuracy.steps_to(rise, 0.4) == steps


def test_seconds_to_bp_are_given_only_if_every_seed_reaches_it() -> None:
    bp = {"train_accuracy": [(5, 0.4), (10, 0.6)]}  # 0.5 at its end
    soon, late = ({"train_accuracy": [(5, 0.2), (step, 0.8)]} for step in (8, 12))
    never = {"train_accuracy": [(5, 0.2), (10, 0.7)]}
    assert accuracy.seconds_to_bp([(soon, bp), (late, bp)], 64) == 10
    assert accuracy.seconds_to_bp([(soon, bp), (never, bp)], 64) is None


def test_results_of_other_settings_are_not_reused(ran: list[str]) -> None:
    bp = ("--methods", "bp", "--skip", "speed", "--seeds", "0")
    trained = ["resnet20-bp-1-seed-0", "resnet32-bp-1-seed-0"]
    ran.extend(["", "", ""])
    run_benchmark(*bp)
    run_benchmark(*bp, "--epochs=2")
    assert ran[3:] == trained * 2


def test_results_of_another_version_of_the_program_are_not_reused(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bp = ("--methods", "bp", "--skip", "speed", "--seeds", "0")
    ran.extend(["", "", ""])
    run_benchmark(*bp)
    monkeypatch.setattr(runs, "source", lambda: "another")
    run_benchmark(*bp)
    assert ran[3:] == ["resnet20-bp-1-seed-0", "resnet32-bp-1-seed-0"] * 2
