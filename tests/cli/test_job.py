"""Folders that Hydra made for a refused run or sweep are removed, and no others."""

from pathlib import Path

import pytest

from ppll_cli.cli.job import HYDRAS, remove_refused, remove_sweep
from ppll_cli.launch.locks import locked_sweep
from ppll_cli.observe.runs import LOG_FILE


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "sweeps" / "2026-11-28" / "12-00-00-7-wide"
    folder.mkdir(parents=True)
    for name in ("multirun.yaml", "sweep.json", "refused.jsonl"):
        (folder / name).write_text("")
    return folder


def test_a_sweep_of_refused_jobs_leaves_nothing(sweep: Path, tmp_path: Path) -> None:
    """Parents of the folder go too if they are empty."""
    remove_sweep(sweep, tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_sweep(sweep, tmp_path)  # a second call finds no folder


def test_a_sweep_in_which_a_job_ran_stays(sweep: Path) -> None:
    (sweep / "0").mkdir()
    remove_sweep(sweep, sweep.parent)
    assert len(list(sweep.iterdir())) == 4


def test_a_folder_that_existed_before_stays(sweep: Path) -> None:
    remove_sweep(sweep, sweep)
    assert len(list(sweep.iterdir())) == 3


def test_the_folder_of_another_sweep_that_has_just_begun_stays(sweep: Path) -> None:
    """Of two sweeps that began at the same time, the refused one removed the files of the other."""
    with locked_sweep(sweep, begins=True):
        remove_sweep(sweep, sweep.parent)
    assert len(list(sweep.iterdir())) == 3


def test_only_folders_made_for_a_refused_run_are_removed(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine" / "new" / "run"
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / "ppll-run.log").write_text("")
    remove_refused(run_dir, {*HYDRAS, LOG_FILE}, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []
