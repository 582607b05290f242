"""The benchmark of detection and super-resolution: its trials, shared results, and tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config import settings
from ppll_cli.config.options import conf_dir
from scripts.benchmarks import beyond, trials
from scripts.benchmarks.runs import RunFailedError
from scripts.benchmarks.trials import Trial
from tests.conftest import compose_config, prepared
from tests.data.picture_files import write_photos


def every_trial(name: str) -> list[Trial]:
    """Return each trial of a case once."""
    lines = beyond.rows(name)
    speeds = beyond.schedules(name).values()
    trained = (trial for row in lines for trial in row.trained)
    listed = [*trained, *(row.speed for row in lines), *speeds]
    return list(dict.fromkeys(listed))


def there_is(trial: Trial) -> bool:
    """Return whether options exist for the model and the data set of a trial."""
    chosen = dict(override.split("=", 1) for override in trial.overrides)
    options = ((group, chosen[group]) for group in ("model", "data"))
    return all((conf_dir() / group / f"{name}.yaml").exists() for group, name in options)


TRIALS = [trial for name in beyond.CASES for trial in every_trial(name) if there_is(trial)]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_every_trial_has_valid_settings(trial: Trial) -> None:
    config, choices = compose_config(list(trial.overrides))
    parsed = settings.parse(config)
    assert parsed.threads is not None
    assert parsed.eval_every > parsed.epochs  # evaluate only at the end
    local = choices["schedule"] in ("ll", "ppll")
    assert bool(parsed.local["cuts"]) == local
    assert choices["local"] in (("greedy", "man", "manpp", "fba") if local else ("greedy",))


@pytest.mark.parametrize("name", ["x2", pytest.param("x4", marks=pytest.mark.slow)])
def test_edsr_is_cut_into_modules_of_almost_equal_size(name: str, tmp_path: Path) -> None:
    """Ten units cannot be divided into four equal parts."""
    folder = write_photos(tmp_path / "photos", width=200, height=180)
    files = [f"data.folders=[{folder}]", f"data.cache={tmp_path / 'cache'}", "device=cpu"]
    for row in beyond.rows(name)[1:]:
        job = prepared(*row.trained[0].overrides, *files).job
        assert [len(units) for units in job.layout.modules] == {2: [5, 5], 4: [3, 2, 2, 3]}[
            row.modules
        ]


@pytest.mark.parametrize("name", beyond.CASES)
def test_every_row_of_a_case_has_the_same_budget(name: str) -> None:
    found = every_trial(name)
    assert len({trial.name for trial in found}) == len(found)
    budget = beyond.CASES[name].budget()
    assert all(trial.overrides[: len(budget)] == budget for trial in found)
    lines = beyond.rows(name)
    further = ("greedy, level", "man", "manpp") if name == "detection" else ()
    assert [(row.method, row.modules) for row in lines] == [
        ("bp", 1),
        *((method, k) for k in (2, 4) for method in ("greedy", *further, "fba off", "fba on")),
    ]


@pytest.mark.parametrize("name", beyond.CASES)
def test_equal_trials_are_run_only_once(name: str) -> None:
    by_row = {(row.method, row.modules): row for row in beyond.rows(name)}
    same = by_row["fba on", 2].trained == by_row["fba off", 2].trained
    assert same == (name == "detection")  # the other cases always have a long skip
    assert by_row["fba on", 4].trained != by_row["fba off", 4].trained
    assert beyond.schedules(name)["ppll"] == by_row["fba on", 2].speed
    assert beyond.schedules(name)["bp"] == by_row["bp", 1].speed


def test_a_short_benchmark_has_a_tenth_of_the_samples() -> None:
    long, short = (beyond.CASES["x2"].budget(each) for each in (beyond.USUAL, beyond.Variant(0.1)))
    (differing,) = ((one, other) for one, other in zip(long, short, strict=True) if one != other)
    samples = [int(override.removeprefix("data.patches_per_epoch=")) for override in differing]
    assert samples[0] == 10 * samples[1]


def test_settings_replace_those_of_all_rows() -> None:
    variant = beyond.Variant(settings=("epochs=24", "precision=bf16"))
    for row in beyond.rows("detection", variant):
        for trial in (*row.trained, row.speed):
            assert [each for each in trial.overrides if "epochs=" in each] == [
                "optim.warmup_epochs=0",
                "epochs=24",
            ]
            assert "precision=bf16" in trial.overrides
    assert variant.name == "beyond-epochs-24-precision-bf16"


@pytest.mark.parametrize("case", beyond.CASES.values(), ids=beyond.CASES)
def test_the_last_module_has_more_than_the_head(case: beyond.Case) -> None:
    for modules, cuts in case.cuts.items():
        assert len(cuts) + 1 == modules
        assert not {"head", "tail"} & {*cuts}


BICUBIC = {"bicubic_psnr": 30.0, "bicubic_ssim": 0.9}
QUALITY = {
    "bp": {"psnr": 32.5, "ssim": 0.95, "ap": 0.5, "ap50": 0.75, **BICUBIC},
    "ll": {"psnr": 32.25, "ssim": 0.9375, "ap": 0.375, "ap50": 0.5, **BICUBIC},
}


def summary_of(overrides: Sequence[str]) -> dict[str, Any]:
    """Return a summary that a run with these overrides could have."""
    schedule = next(o.removeprefix("schedule=") for o in overrides if o.startswith("schedule="))
    test = QUALITY["bp" if schedule == "bp" else "ll"]
    module = {"params": 10, "aux_params": 0, "flops": 10, "aux_flops": 0, "test": test}
    trained_so = {**module, "aux_params": 2000, "aux_flops": 5}
    stages = [{"peak_memory_bytes": 5e6, "aux_fraction": 0.25}]
    last = {"peak_memory_bytes": None, "aux_fraction": None}
    return {
        "steps": 9,
        "git_commit": None,
        "test": {"loss": 0.5, **test},
        "per_module": [module] if schedule == "bp" else [trained_so, module],
        "train": {"samples_per_second": 123.4},
        "stages": [*stages, last] if "gpus=2" in overrides else stages,
        "pipeline": {"bubble_fraction": 0.125 if "gpus=2" in overrides else None},
        "edges": [],
    }


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Replace runs by made-up summaries, and return the list of their folders' names."""
    monkeypatch.chdir(tmp_path)
    names: list[str] = []

    def run(overrides: Sequence[str], run_dir: Path, _: bool) -> dict[str, Any]:
        names.append(run_dir.name)
        return summary_of(overrides)

    monkeypatch.setattr(trials, "run", run)
    return names


TRAINED = ["bp", "greedy-2", "fba-off-2", "fba-on-2", "greedy-4", "fba-off-4", "fba-on-4"]
SPEEDS = [*TRAINED, "bp-all-threads", "ll", "gpipe"]


def test_a_case_runs_its_trials_and_writes_results(ran: list[str]) -> None:
    beyond.main(["--case", "x2", "--jobs", "1"])
    assert ran == [
        *(f"x2-{row}-trained" for row in TRAINED),
        *(f"x2-{row}-speed" for row in SPEEDS),
    ]
    beyond.main(["--case", "x2"])
    assert len(ran) == 17
    rows = json.loads(Path("outputs/benchmark/beyond.json").read_text())["rows"]
    assert rows["x2 fba on 4 trained"]["module_tests"][0]["psnr"] == 32.25
    assert rows["x2 fba on 4 trained"]["machine"]["cores"] >= 1
    assert rows["x2 fba on 4 speed"]["aux_fraction"] == [0.25, None]
    text = Path("outputs/benchmark/beyond.md").read_text()
    assert text.startswith("## Super-resolution x2\n\n| method | modules | PSNR, dB | SSIM | ")
    assert text.splitlines()[4:6] == [
        "| bicubic |  | 30.00 | 0.9000 | -2.50 |  |  |  |  |  |",
        "| bp | 1 | 32.50 | 0.9500 |  | 0 | 0% of the backbone | 25% | 5 | 123.4 |",
    ]
    measured = "32.25 | 0.9375 | -0.25 | 2,000 | 25% of the backbone | 25% / ? | 5 / ? | 123.4 |"
    for method in ("greedy", "fba off", "fba on"):
        for modules in (2, 4):
            assert f"| {method} | {modules} | {measured}\n" in text
    assert text.endswith("| gpipe | 123.4 | 0.12 |\n| ppll | 123.4 | 0.12 |\n")
    assert "| bp, all threads | 123.4 | ? |" in text


def test_each_case_writes_its_tables(ran: list[str]) -> None:
    beyond.main(["--skip", "speed"])
    assert len(ran) == 3 * len(TRAINED) - 1 + 6  # six rows are for detection only
    text = Path("outputs/benchmark/beyond.md").read_text()
    assert "| method | modules | AP | AP50 | AP minus bp's |" in text
    assert "| fba on | 4 | 0.375 | 0.500 | -0.125 | 2,000 | 25% of the backbone |  |  |  |" in text
    assert text.count("| bicubic |") == 2
    assert text.count("| gpipe |  |  |") == 3


def test_skip_train_measures_only_speeds(ran: list[str]) -> None:
    beyond.main(["--case", "x2", "--skip", "train"])
    assert ran == [f"x2-{row}-speed" for row in SPEEDS]
    assert (
        "| bp | 1 |  |  |  |  |  | 25% | 5 | 123.4 |"
        in Path("outputs/benchmark/beyond.md").read_text()
    )


def test_only_the_named_rows_are_measured(ran: list[str]) -> None:
    chosen = ["--methods", "bp", "manpp", "fba on", "--modules", "4"]
    beyond.main(["--case", "detection", "--jobs", "1", "--skip", "speed", *chosen])
    assert ran == [f"detection-{row}-trained" for row in ("bp", "manpp-4", "fba-on-4")]


def test_metrics_of_several_seeds_are_averaged(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(overrides: Sequence[str], run_dir: Path, _: bool) -> dict[str, Any]:
        ran.append(run_dir.name)
        found = summary_of(overrides)
        better = {"psnr": found["test"]["psnr"] + ("seed=2" in overrides)}
        return {**found, "test": {**found["test"], **better}}

    monkeypatch.setattr(trials, "run", run)
    chosen = ["--skip", "speed", "--jobs", "1", "--modules", "2", "--methods", "bp", "greedy"]
    beyond.main(["--case", "x2", *chosen])
    beyond.main(["--case", "x2", *chosen, "--seeds", "0", "2"])
    names = ["x2-bp-trained", "x2-greedy-2-trained"]
    assert ran == [*names, *(f"{name}-seed-2" for name in names)]
    text = Path("outputs/benchmark/beyond.md").read_text()
    assert "| bicubic |  | 30.00 ± 0.00 | 0.9000 ± 0.0000 | -3.00 |" in text
    assert "| bp | 1 | 33.00 ± 0.71 | 0.9500 ± 0.0000 |  | 0 |" in text
    assert "| greedy | 2 | 32.75 ± 0.71 | 0.9375 ± 0.0000 | -0.25 | 2,000 |" in text
    assert "| fba on | 2 |  |  |  |  |  |  |  |  |" in text


def test_a_stopped_benchmark_continues_with_the_missing_trials(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(overrides: Sequence[str], run_dir: Path, _: bool) -> dict[str, Any]:
        if run_dir.name == "x4-gpipe-speed":
            raise RunFailedError("gpipe")
        return summary_of(overrides)

    with monkeypatch.context() as patched:
        patched.setattr(trials, "run", fails)
        with pytest.raises(RunFailedError, match="gpipe"):
            beyond.main(["--case", "x4", "--length", "0.1", "--skip", "train"])
    beyond.main(["--case", "x4", "--length", "0.1", "--skip", "train"])
    assert ran == ["x4-gpipe-speed"]


def test_results_of_another_budget_are_not_reused(ran: list[str]) -> None:
    beyond.main(["--case", "x4", "--length", "0.1", "--skip", "speed", "--jobs", "1"])
    beyond.main(["--case", "x4", "--skip", "speed", "--jobs", "1"])
    assert ran == 2 * [f"x4-{row}-trained" for row in TRAINED]
