"""A sweep ends with the comparison of its runs, wherever they ran."""

import json
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ppll_cli.cli.app import raise_first
from ppll_cli.cli.job import Jobs
from ppll_cli.cli.sweep import CompareRuns, direction_of, refuse, warn_of_tuning
from ppll_cli.config.commands import command
from ppll_cli.errors import ConfigError, Interrupted, PpllError, RunFailedError
from ppll_cli.launch.sweeps import record_of, recorded_sweep
from ppll_cli.leaves.files import write_json
from ppll_cli.observe.tracker import NoTracker
from tests.observe.compared_runs import make

TOLD: list[tuple[Path, str]] = []


class Told(NoTracker):
    """A tracker that records the sweeps that it receives."""

    def sweep(self, folder: Path, name: str) -> None:
        assert (folder / "comparison.png").exists()
        TOLD.append((folder, name))


def config(folder: Path) -> DictConfig:
    hydra: dict[str, Any] = {"sweep": {"dir": str(folder)}, "runtime": {"choices": {}}}
    hydra["runtime"]["choices"]["tracker"] = "told"
    return OmegaConf.create({"tracker": {"_target_": f"{__name__}.Told"}, "hydra": hydra})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a sweep."""
    TOLD.clear()
    Jobs.current = Jobs()
    folder = tmp_path / "2026-11-25" / "12-00-00-7"
    folder.mkdir(parents=True)
    return folder


def test_a_sweep_ends_with_its_comparison(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(folder / "0", "bp", 100.0, gpus=1)
    make(folder / "1", "ppll", 150.0)
    CompareRuns().on_multirun_end(config(folder))
    assert Jobs.current.ends == []
    said = capsys.readouterr().out
    assert "1    completed  ppll" in said
    *_, then, last = said.splitlines()
    assert then == f"next: {command('ppll-compare', str(folder))}"
    assert last.endswith("comparison.md, .csv and .png")
    assert {path.suffix for path in folder.glob("comparison.*")} == {".csv", ".md", ".png"}
    assert [(folder, "2026-11-25/12-00-00-7")] == TOLD


def test_failed_and_refused_jobs_are_counted(folder: Path) -> None:
    make(folder / "0", "bp", 100.0, gpus=1)
    make(folder / "1", "ppll", None, status="failed", error="it broke")
    refuse(folder, 2, ["gpus=0"], "gpus=0: too few")
    refuse(folder, 3, ["gpus=99"], "gpus=99: too many\n(really)")
    CompareRuns().on_multirun_end(config(folder))
    assert Jobs.current.ends == ["failed", "refused", "refused"]
    lines = (folder / "refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["job"] for line in lines] == [2, 3]
    text = (folder / "comparison.md").read_text()
    assert "- 2 refused: gpus=0: too few\n- 3 refused: gpus=99: too many\n" in text


def test_jobs_of_other_processes_are_counted_in_the_sweep(folder: Path) -> None:
    """A job that was killed before it began has no line in the comparison."""
    jobs = [[f"seed={n}"] for n in range(5)]
    record = record_of(["hydra/launcher=joblib"], jobs, [str(n) for n in range(5)])
    write_json(folder / "sweep.json", record)
    make(folder / "0", "ppll", 100.0)
    make(folder / "1", "ppll", None, status="failed")
    refuse(folder, 2, ["seed=2"], "no")
    make(folder / "3", "ppll", None, status="interrupted")
    CompareRuns().on_multirun_end(config(folder))
    assert Jobs.current.ends == ["failed", "refused", "interrupted", "missing"]
    make(folder / "3", "ppll", 100.0)
    CompareRuns().on_multirun_end(config(folder))
    assert Jobs.current.ends == ["failed", "refused", "missing"]


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        (["failed", "refused"], RunFailedError),
        (["refused", "failed"], ConfigError),
        (["refused", "interrupted"], Interrupted),
    ],
)
def test_jobs_of_other_processes_decide_the_exit_status(
    ends: list[str], error: type[PpllError]
) -> None:
    """The first job that did not complete decides, unless a job was interrupted."""
    with pytest.raises(error):
        raise_first(Jobs(folder=Path("sweep"), ends=ends))


def test_a_search_cannot_be_resumed(folder: Path) -> None:
    """A search cannot be resumed, so the program records it, and `resume` explains it."""
    searches = config(folder)
    searches.hydra.runtime.choices["hydra/sweeper"] = "optuna"
    CompareRuns().on_multirun_start(searches)
    with pytest.raises(ConfigError, match="its sweeper optuna is a search, which chooses"):
        recorded_sweep([f"resume={folder}"])
    for path in folder.iterdir():
        path.unlink()
    searches.hydra.runtime.choices["hydra/sweeper"] = "basic"
    CompareRuns().on_multirun_start(searches)
    assert not list(folder.iterdir())


def test_the_folders_that_a_command_makes_are_known(folder: Path) -> None:
    new = folder / "new" / "sweep"
    for place in (folder, new):
        both = config(place)
        both.hydra.run = {"dir": str(place)}
        both.hydra.runtime.choices["hydra/sweeper"] = "basic"
        for begin in (CompareRuns().on_run_start, CompareRuns().on_multirun_start):
            Jobs.current = Jobs()
            begin(both)
            assert (Jobs.current.folder, Jobs.current.above) == (place, folder)


def test_a_sweep_of_only_refused_jobs_has_no_comparison(folder: Path) -> None:
    refuse(folder, 0, ["gpus=0"], "gpus=0: too few")
    CompareRuns().on_multirun_end(config(folder))
    assert Jobs.current.ends == ["refused"]
    assert not list(folder.glob("comparison.*"))
    assert TOLD == []


def test_a_full_disk_does_not_hide_the_comparison(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    make(folder / "0", "bp", 100.0, gpus=1)
    (folder / "comparison.csv").mkdir()
    TOLD.clear()
    CompareRuns()._compare(folder)
    assert "0    completed  bp" in capsys.readouterr().out
    assert "the comparison could not be written" in caplog.text


class Direction(Enum):
    """As in the schema of Hydra's plugin for Optuna."""

    minimize = 1
    maximize = 2


@pytest.mark.parametrize(
    ("sweeper", "settings", "direction"),
    [
        ("optuna", {"direction": Direction.maximize}, "maximize"),
        ("optuna", {"direction": "minimize"}, "minimize"),
        ("optuna", {"direction": ["minimize", "maximize"]}, None),
        ("nevergrad", {"budget": 3}, None),
        ("basic", {"direction": "minimize"}, None),
    ],
)
def test_the_direction_of_a_search(sweeper: str, settings: Any, direction: str | None) -> None:
    config = {"choices": {"hydra/sweeper": sweeper}}
    made = {"runtime": config, "mode": RunMode.MULTIRUN, "sweeper": settings}
    assert direction_of(OmegaConf.create(made)) == direction


@pytest.mark.parametrize(
    ("sweeper", "mode", "objective", "warns"),
    [
        ("optuna", RunMode.MULTIRUN, "test.accuracy", True),
        ("optuna", RunMode.MULTIRUN, "test_ema.loss", True),
        ("optuna", RunMode.MULTIRUN, "val.accuracy", False),
        ("optuna", RunMode.RUN, "test.accuracy", False),
        ("basic", RunMode.MULTIRUN, "test.accuracy", False),
    ],
)
def test_a_sweeper_that_tunes_on_the_test_set_gets_a_warning(
    caplog: pytest.LogCaptureFixture, sweeper: str, mode: RunMode, objective: str, warns: bool
) -> None:
    """The basic sweeper runs a grid, and chooses nothing by its results."""
    runtime = {"choices": {"hydra/sweeper": sweeper}}
    warn_of_tuning(OmegaConf.create({"runtime": runtime, "mode": mode}), objective)
    assert [each.getMessage()[:10] for each in caplog.records] == ["objective="] * warns
