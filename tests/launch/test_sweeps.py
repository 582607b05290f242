"""`--multirun resume=SWEEP_DIR` on the command line: what is refused, and what is not trusted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.launch.resume import recorded
from ppll_cli.launch.sweeps import read_sweep, record_of, recorded_sweep
from tests.observe.compared_runs import make

JOBS = [["schedule=bp", "seed=0"], ["schedule=ppll", "seed=0"]]
Damage = Callable[[dict[str, Any]], object]


def write(folder: Path, *launcher: str, **changes: object) -> Path:
    """Write the record of a sweep in which no job has run yet, and return the folder."""
    record = record_of(launcher or ["hydra/launcher=basic"], JOBS, ["0", "1"])
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({**record, **changes}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "swept")


@pytest.mark.parametrize("overrides", [[], ["resume=null"], ["~resume"], ["seed=1,2"]])
def test_without_resume_no_sweep_is_resumed(overrides: list[str]) -> None:
    assert recorded_sweep(overrides) is None


def test_a_resumed_sweep_has_its_recorded_jobs_and_launcher(folder: Path) -> None:
    given = [f"resume={folder}", "model._target_=a.A,b.B", "tracker=wandb", "hydra.verbose=true"]
    sweep = recorded_sweep(given)
    assert sweep is not None
    assert [(job.number, job.folder.name, list(job.overrides)) for job in sweep.jobs] == [
        (0, "0", JOBS[0]),
        (1, "1", JOBS[1]),
    ]
    launched = ["hydra/launcher=basic", "tracker=wandb", "hydra.verbose=true"]
    assert sweep.arguments(given) == [*launched, f"hydra.sweep.dir={folder}"]


def test_a_job_tells_whether_it_began_and_its_status(folder: Path) -> None:
    def how() -> list[tuple[bool, str]]:
        return [(job.began, job.status) for job in read_sweep(folder).jobs]

    (folder / "1").mkdir()
    assert how() == [(False, "missing")] * 2
    make(folder / "0", "bp", status="completed")
    make(folder / "1", "ppll", status="interrupted")
    assert how() == [(True, "completed"), (True, "interrupted")]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed=5", "seed=5: the jobs of a resumed sweep keep the overrides that they began with"),
        ("gpus=1,2", "gpus=1,2: the jobs of a resumed sweep"),
        ("model={_target_:a.A,dim:3}", "model={_target_:a.A,dim:3}: the jobs of a resumed sweep"),
        ("experiment=mine", "experiment=mine: the jobs of a resumed sweep"),
        ("hydra/sweeper=optuna", "hydra/sweeper=optuna: a search chooses jobs by the results"),
        ("hydra.sweeper.n_trials=9", "hydra.sweeper.n_trials=9: a search chooses jobs by the"),
        ("hydra.sweep.dir=there", "hydra.sweep.dir=there: a resumed sweep keeps its folder"),
        ("hydra.sweep.subdir=x", "hydra.sweep.subdir=x: a resumed sweep keeps its folder"),
        ("hydra.run.dir=there", "hydra.run.dir=there: a resumed sweep keeps its folder"),
    ],
)
def test_overrides_that_do_not_apply_to_a_resumed_sweep_are_refused(
    folder: Path, override: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as error:
        recorded_sweep([override, f"resume={folder}"])
    assert str(error.value).startswith(problem)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": True}, r"has format True, but this program reads only format 1"),
        (
            {"format": 2},
            r"has format 2, but this program reads only format 1; use the version of ppll-run",
        ),
        ({"sweeper": "optuna"}, "its sweeper optuna is a search, which chooses each job by the"),
        ({"sweeper": None}, "its sweeper None is a search"),
        ({"jobs": JOBS[:1]}, "it does not list jobs and their folders"),
        ({"jobs": [["seed=1"], "seed=2"]}, "job 1 has overrides that no job can have"),
        ({"jobs": [["seed=1"], [2]]}, "job 1 has overrides that no job can have"),
        ({"jobs": [["seed=["], []]}, "job 0 has overrides that no job can have"),
        ({"jobs": [["hydra.job_logging.x=1"], []]}, "job 0 has overrides that no job can have"),
        ({"jobs": [["+model@hydra.job=a"], []]}, "job 0 has overrides that no job can have"),
        ({"jobs": [["resume=elsewhere"], []]}, "job 0 has overrides that no job can have"),
        ({"folders": ["0", None]}, r"only its launcher knows the folders of its jobs"),
        ({"folders": ["0", 1]}, "the folder of job 1 is not inside the sweep"),
        ({"folders": ["0", "../../precious"]}, "the folder of job 1 is not inside the sweep"),
        ({"folders": ["0", "/precious"]}, "the folder of job 1 is not inside the sweep"),
        ({"folders": ["0", "."]}, "the folder of job 1 is not inside the sweep"),
        ({"folders": ["0", "sweep.json"]}, r"sweep\.json, on the path of job 1, is not a folder"),
        ({"folders": ["0", "link"]}, "link, on the path of job 1, is not a folder; remove it"),
        ({"folders": ["0", "link/1"]}, "link, on the path of job 1, is not a folder; remove it"),
        ({"folders": ["0", "0"]}, "several of its jobs share a folder"),
        (
            {"folders": ["0", "0/1"]},
            "several of its jobs share a folder, or one has its folder inside another's, because",
        ),
        ({"launcher": "../evil"}, "its launcher is not an option"),
        (
            {"launcher_settings": ["hydra.callbacks.x=1"]},
            "its launcher_settings are not overrides of",
        ),
        ({"launcher_settings": "none"}, "its launcher_settings are not overrides of"),
    ],
)
def test_an_edited_sweep_record_is_refused(
    tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    """Resuming clears folders of jobs that never began, so all of them must be inside the sweep."""
    folder = write(tmp_path / "swept", **changes)
    (tmp_path / "precious").mkdir()
    (folder / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match=problem):
        recorded_sweep([f"resume={folder}"])


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path, folder: Path) -> None:
    make(tmp_path / "run", "bp")
    (tmp_path / "empty").mkdir()
    (folder / "sweep.json").rename(tmp_path / "elsewhere.json")
    (folder / "sweep.json").symlink_to(tmp_path / "elsewhere.json")
    for name, problem in (
        ("nothing", "there is no such folder; give a sweep's folder"),
        ("empty", r"it holds no sweep\.json of a sweep \(that file cannot be read: no such file"),
        ("run", "is the folder of a single run; remove --multirun"),
        ("swept", "that file is a link"),
    ):
        with pytest.raises(ConfigError, match=problem):
            recorded_sweep([f"resume={tmp_path / name}"])
    with pytest.raises(ConfigError, match="names several folders; give one"):
        recorded_sweep(["resume=a,b"])
    with pytest.raises(ConfigError, match="is empty"):
        recorded_sweep(["resume="])


def test_a_sweep_cannot_be_resumed_as_a_run(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is the folder of a sweep; give one of its runs"):
        recorded([f"resume={folder}"])


def test_only_numbers_and_words_are_taken_from_recorded_launcher_settings(tmp_path: Path) -> None:
    """Some launchers execute their settings in a shell."""
    plain = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=4"]
    plain += ["hydra.launcher.partition=gpu-long", "hydra.sweeper.max_batch_size=2"]
    folder = write(tmp_path / "swept", *plain)
    given = [f"resume={folder}"]
    sweep = recorded_sweep(given)
    assert sweep is not None
    assert sweep.arguments(given) == [*plain, f"hydra.sweep.dir={folder}"]

    for setting in ("setup=[evil]", "partition='a b'", "_target_=evil.Launcher", 'x="a\nb"'):
        write(folder, *plain, f"hydra.launcher.{setting}")
        sweep = recorded_sweep(given)
        assert sweep is not None
        with pytest.raises(ConfigError, match="because a launcher may execute it; give hydra/la"):
            sweep.arguments(given)
        again = ["hydra/launcher=submitit_slurm", f"hydra.launcher.{setting}"]
        assert sweep.arguments([*given, *again]) == [*again, f"hydra.sweep.dir={folder}"]
