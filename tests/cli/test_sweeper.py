"""Sweeps that stop and are resumed. Jobs are faked, and the program runs in this process."""

import json
import re
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra.core import utils

from ppll_cli.cli import app
from ppll_cli.cli.sweeper import BasicSweeper
from ppll_cli.errors import ConfigError, Interrupted, WorkerFailedError
from ppll_cli.launch.locks import locked_sweep
from ppll_cli.launch.record import write_record
from ppll_cli.launch.run import Run
from ppll_cli.launch.sweeps import read_sweep
from ppll_cli.leaves import forkserver
from ppll_cli.leaves.files import write_json
from tests.program import restored


@dataclass
class Jobs:
    """Replaces the training of jobs by results that a test chooses.

    Attributes:
        plan: By folder name of a job, how the job ends the next time that it runs.
        ran: The jobs that ran: name of the folder, whether a run was resumed, and the seed.
        trackers: The option of the tracker of each job, by folder name.
    """

    plan: dict[str, str] = field(default_factory=dict)
    ran: list[tuple[str, bool, int]] = field(default_factory=list)
    trackers: dict[str, str] = field(default_factory=dict)

    def execute(self, run: Run) -> dict[str, Any]:
        name, end = run.run_dir.name, self.plan.pop(run.run_dir.name, "completed")
        self.ran.append((name, run.before is not None, run.settings.seed))
        self.trackers[name] = run.choices["tracker"]
        if end == "refused":
            raise ConfigError("gpus", 9, "too many")
        if run.before is None:
            own = {"choices": run.choices, "cuts": [], "threads": 1}
            write_record(run.run_dir, {**run.config, **own})
        known = {"schedule": run.choices["schedule"], "seed": run.settings.seed, "gpus": 2}
        summary = {"status": end, **known, "steps": 5, "test": {"loss": 1.0, "accuracy": 0.5}}
        write_json(run.run_dir / "summary.json", summary)
        if end == "interrupted":
            raise Interrupted(signal.SIGINT)
        if end == "failed":
            raise WorkerFailedError({"stage": 0, "device": "cpu", "error": "it broke"})
        run.objective = "test.accuracy"
        return summary


@dataclass
class Said:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str


Main = Callable[..., Said]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    jobs = Jobs()
    monkeypatch.setattr(Run, "execute", lambda run: jobs.execute(run))
    return jobs


@pytest.fixture
def main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jobs: Jobs
) -> Main:
    """Return a function that runs the program in this process, in a separate folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the program sets it too; undo it after the test
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(forkserver, "start", lambda: None)
    monkeypatch.setattr(forkserver, "stop", lambda: None)
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)

    def main(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["ppll-run", *arguments])
        with restored(), pytest.raises(SystemExit) as left:
            app.main()
        said = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Said(left.value.code, said.out, said.err)

    return main


def stopped(main: Main, jobs: Jobs, *more: str) -> str:
    """Stop a sweep of five jobs in its fourth job, and return the command that resumes it."""
    jobs.plan |= {"1": "failed", "2": "refused", "3": "interrupted"}
    said = main("-m", "seed=0,1,2,3,4", "hydra.sweep.dir=swept", *more)
    assert said.status == 128 + signal.SIGINT
    assert [name for name, _, _ in jobs.ran] == ["0", "1", "2", "3"]
    jobs.ran.clear()
    (command,) = re.findall(r"^ *to continue the sweep: (.*)$", said.err, re.MULTILINE)
    return str(command)


def arguments_of(command: str) -> list[str]:
    words = shlex.split(command)
    return words[words.index("--multirun") :]


def table(folder: Path) -> str:
    """Return the comparison that a sweep ended with, without the names of folders."""
    return (folder / "comparison.csv").read_text().replace(str(folder), "")


@pytest.mark.slow
def test_a_resumed_sweep_continues_where_it_was_stopped(
    main: Main, jobs: Jobs, tmp_path: Path
) -> None:
    command = stopped(main, jobs)
    folder = tmp_path / "swept"
    assert arguments_of(command) == ["--multirun", f"resume={folder}"]
    before = {p: p.read_bytes() for n in "013" for p in (folder / n).rglob("*") if p.is_file()}
    (folder / "4" / "left").mkdir(parents=True)  # left by a start-up that was killed
    said = main(*arguments_of(command))
    assert said.status == 0, said.err
    assert jobs.ran == [("1", True, 1), ("2", False, 2), ("3", True, 3), ("4", False, 4)]
    assert not (folder / "4" / "left").exists()
    assert "1 of the sweep's 5 jobs are complete, 2 continue, and 2 start" in said.out + said.err
    changed = {p for p, content in before.items() if p.read_bytes() != content}
    assert {str(p.relative_to(folder)) for p in changed} <= {
        "1/summary.json",
        "3/summary.json",
        "1/ppll-run.log",
        "3/ppll-run.log",
    }

    unhurt = main("-m", "seed=0,1,2,3,4", "hydra.sweep.dir=unhurt")
    assert unhurt.status == 0
    assert table(folder) == table(tmp_path / "unhurt")
    record = json.loads((folder / "sweep.json").read_text())
    assert record["jobs"] == [[f"seed={n}"] for n in range(5)]
    assert (record["launcher"], record["folders"]) == ("basic", ["0", "1", "2", "3", "4"])
    jobs.ran.clear()
    assert main("-m", "resume=swept").status == 0  # no job is left to run
    assert jobs.ran == []


@pytest.mark.slow
def test_classes_and_trackers_must_be_named_again(main: Main, jobs: Jobs, tmp_path: Path) -> None:
    """Neither a class nor a tracker is read from the folder.

    This is also true for a job that never began.
    """
    jobs.plan["0"] = "interrupted"
    swept = ["model._target_=a.Mine,b.Yours", "tracker=tensorboard"]
    said = main("-m", "hydra.sweep.dir=swept", *swept)
    (command,) = re.findall(r"^ *to continue the sweep: (.*)$", said.err, re.MULTILINE)
    again = ["tracker=tensorboard", "model._target_=a.Mine,b.Yours"]
    assert arguments_of(command) == ["--multirun", f"resume={tmp_path / 'swept'}", *again]

    jobs.ran.clear()
    said = main("-m", "resume=swept", "model._target_=a.Mine")
    assert said.status == 2
    remedy = "model._target_=b.Yours: the run directory names a class that is not part of"
    assert remedy in said.err
    assert remedy in said.out  # the comparison says why
    assert jobs.ran == [("0", True, 0)]
    assert jobs.trackers == {"0": "none"}
    said = main(*arguments_of(command))
    assert said.status == 0
    assert jobs.ran[1:] == [("1", False, 0)]
    assert jobs.trackers["1"] == "tensorboard"


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [["experiment=mine"], ["+model.part._target_=a.Mine", "++seed=7", "~model.heads"]]
)
def test_classes_whose_keys_were_added_can_be_named_again(
    main: Main, jobs: Jobs, tmp_path: Path, given: list[str]
) -> None:
    """No option of `model` has the key: Hydra refused the class that the command named again."""
    preset = tmp_path / "conf" / "experiment" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("# @package _global_\nmodel:\n  part:\n    _target_: a.Mine\n")
    jobs.plan["0"] = "interrupted"
    said = main("-m", "--config-dir=conf", "hydra.sweep.dir=swept", "epochs=1,2", *given)
    (command,) = re.findall(r"^ *to continue the sweep: (.*)$", said.err, re.MULTILINE)
    ((_, _, seed),) = jobs.ran
    said = main(*arguments_of(command))
    assert said.status == 0, said.err
    assert jobs.ran[1:] == [("0", True, seed), ("1", False, seed)]


def test_only_one_process_can_run_a_sweep(main: Main, jobs: Jobs, tmp_path: Path) -> None:
    jobs.plan["0"] = "interrupted"
    main("-m", "seed=0,1", "hydra.sweep.dir=swept")
    folder, record = tmp_path / "swept", (tmp_path / "swept" / "sweep.json").read_bytes()
    jobs.ran.clear()
    with locked_sweep(folder, begins=False):
        said = main("-m", "resume=swept")
    problem = f"resume={folder}: another process is running this sweep; wait until it ends, or stop"
    assert (said.status, said.err) == (2, f"ppll-run: {problem} it\n")
    said = main("-m", "seed=7,8", "hydra.sweep.dir=swept")
    assert said.status == 2
    assert "its subfolder 0 has job 0 of another sweep; choose a new folder, or" in said.err
    assert jobs.ran == []
    assert (folder / "sweep.json").read_bytes() == record


def test_a_refusal_before_the_first_job_leaves_nothing(main: Main, tmp_path: Path) -> None:
    said = main("-m", "gpus=1,2", "modle=vit", "hydra.sweep.dir=swept")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_key_need_only_exist_in_the_options_of_the_jobs(main: Main, jobs: Jobs) -> None:
    """The default option of `local` has no key `hidden`."""
    assert main("-m", "local=dgl,infopro", "local.hidden=64").status == 0
    assert [name for name, _, _ in jobs.ran] == ["0", "1"]


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("1e3", "José #1")), "it's"]
)
def test_a_quoted_value_of_such_a_key_reaches_the_jobs(
    main: Main, jobs: Jobs, tmp_path: Path, name: str
) -> None:
    """Hydra lost the quotes: it could not parse the value, or took it for a number."""
    (tmp_path / name).mkdir()
    given = f'data.root="{name}"'
    said = main("-m", "data=digits,fashion_mnist", given, "hydra.sweep.dir=swept")
    assert (said.status, len(jobs.ran)) == (0, 2)
    assert [given in job.overrides for job in read_sweep(tmp_path / "swept").jobs] == [True, True]


def test_a_disk_that_is_full_when_a_job_begins_ends_the_sweep_with_one_line(
    main: Main, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra writes its files of a job before the program runs the job."""
    save = utils._save_config

    def full(config: Any, name: str, folder: Path) -> None:
        if folder.parent.name == "1":
            raise OSError(28, "No space left on device")
        save(config, name, folder)

    monkeypatch.setattr(utils, "_save_config", full)
    said = main("-m", "seed=0,1,2", "hydra.sweep.dir=swept")
    assert (said.status, jobs.ran) == (1, [("0", False, 0)])
    first, second = said.err.splitlines()
    assert first.startswith("ppll-run: results cannot be written: No space left on device: ")
    assert second.startswith("  to continue the sweep: ")


def test_the_first_failure_of_a_job_is_shown_even_if_the_sweeper_fails_too(
    main: Main, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's sweeper raises an error if all jobs failed. The command ended with its traceback."""
    jobs.plan |= {"0": "refused", "1": "failed"}
    launch = BasicSweeper._launch

    def fail(*arguments: Any) -> None:
        launch(*arguments)
        raise ValueError("No trials are completed yet.")

    monkeypatch.setattr(BasicSweeper, "_launch", fail)
    said = main("-m", "seed=0,1", "hydra.sweep.dir=swept")
    assert (said.status, said.err.splitlines()[-1]) == (2, "ppll-run: gpus=9: too many")
    assert "ppll-run: the sweep ended early: ValueError: No trials are completed" in said.out
    assert "  to continue the sweep: " in said.err  # because of the job that failed
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize(
    ("name", "end"),
    [
        pytest.param("name=wide,deep", "", marks=pytest.mark.slow),
        ("name=vit-s${seed}", "-vit-s0"),
    ],
)
def test_jobs_with_names_of_their_own_have_the_same_parent_folder(
    main: Main, tmp_path: Path, name: str, end: str
) -> None:
    """The name is part of the sweep's folder, so each job went into another sweep's folder."""
    assert main("-m", name, "seed=0,1").status == 0
    (folder,) = tmp_path.glob("outputs/sweeps/*/*")
    assert re.fullmatch(r"[\d-]+" + end, folder.name)
    assert {job.status for job in read_sweep(folder).jobs} == {"completed"}
    assert (folder / "comparison.csv").exists()


def test_a_refused_job_removes_no_file_of_another_run(
    main: Main, jobs: Jobs, tmp_path: Path
) -> None:
    """Only Hydra's launcher knows this folder in time to see that it has a run already."""
    folder = ["hydra.sweep.dir=swept", "hydra.sweep.subdir=${hydra:job.id}"]
    assert main("-m", "seed=0", *folder).status == 0
    log = tmp_path / "swept" / "0" / "ppll-run.log"
    log.write_text("what the run told")
    said = main("-m", "seed=1", *folder)
    assert (said.status, jobs.ran) == (2, [("0", False, 0)])
    assert "is not empty: it holds config.json" in said.err
    assert log.read_text().startswith("what the run told")


def test_a_refusal_names_the_job(main: Main, jobs: Jobs) -> None:
    said = main("-m", "model=vit,resnet32", "model.dim=16")
    assert (said.status, jobs.ran) == (2, [])
    assert "model.dim=16: there is no such key (job 1 of the sweep); it is a key of" in said.err
    assert "; model has _target_, depth, drop_path" in said.err


@pytest.mark.slow
def test_the_record_has_the_folder_names_of_all_jobs(
    main: Main, jobs: Jobs, tmp_path: Path
) -> None:
    """Names of folders contain the jobs' numbers, which do not change when the sweep is resumed."""
    jobs.plan["job-2"] = "failed"
    swept = ["seed=1,2,3,4", "hydra.sweeper.max_batch_size=3", "checkpoint.keep=${hydra:job.num}"]
    subdir = "hydra.sweep.subdir=job-${hydra:job.num}"
    said = main("-m", "hydra.sweep.dir=swept", subdir, *swept)
    folder = tmp_path / "swept"
    assert said.status == 2  # job 0 is refused, because it would keep 0 checkpoints
    assert [job.folder.name for job in read_sweep(folder).jobs] == [f"job-{n}" for n in range(4)]
    jobs.ran.clear()
    said = main("-m", "resume=swept")
    assert said.status == 2
    assert jobs.ran == [("job-2", True, 3)]
    assert json.loads((folder / "job-3" / "config.json").read_text())["checkpoint"]["keep"] == 3
