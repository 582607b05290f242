"""`resume=RUN_DIR` as a user sees it."""

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.test_app import TINY
from tests.conftest import Result, Runner, assert_same
from tests.launch.recorded_runs import EVIL, spoil, spoil_choice, write_config
from tests.program import ppll_run
from tests.warm import WarmSession


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file, by path; None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resume=run", "seed=5"], "seed=5: the run was started with 0; keep that value"),
        (
            ["resume=run", "--multirun", "gpus=1,2"],
            "resume=RUN: is the folder of a single run; remove",
        ),
        (["resume=run", "--cfg", "job"], "resume=RUN: --cfg does not show what a run recorded; s"),
        (["resume=run", "local=none"], "local=none: there is no such option; there are auglocal"),
        (["resume=run", "max_steps=0"], "max_steps=0: must be greater than or equal to 1"),
        (["resume=auto", "hydra.run.dir=run", "seed=5"], "seed=5: the run was started with 0;"),
        (["resume=auto", "hydra.run.dir=broken"], "resume=BROKEN: it holds no config.json"),
        (["resume=broken"], "resume=broken: it holds no config.json of a run"),
    ],
)
def test_a_refused_resume_prints_one_line_and_changes_nothing(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    folder = write_config(tmp_path / "run")
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken" / "config.json").write_text("{")
    before = contents(folder.parent)
    result = ppll_run(*arguments, cwd=folder.parent)
    assert result.returncode == 2
    assert result.stdout == ""
    (complaint,) = result.stderr.splitlines()
    expected = line.replace("RUN", str(folder)).replace("BROKEN", str(folder.parent / "broken"))
    assert complaint.startswith("ppll-run: " + expected)
    assert contents(folder.parent) == before


def test_a_class_named_only_by_the_folder_is_not_imported(tmp_path: Path) -> None:
    """The module is in the current directory, where the program looks for classes of the user."""
    folder = write_config(tmp_path / "run")
    evil = "from pathlib import Path\nPath('touched').touch()\nclass Evil: pass\n"
    (folder.parent / "evil_module.py").write_text(evil)
    spoil(folder, schedule={"_target_": EVIL, "microbatches": 1})
    before = contents(folder.parent)
    result = ppll_run("resume=run", cwd=folder.parent)
    assert result.returncode == 2
    assert f"give schedule._target_={EVIL} on the command line" in result.stderr
    assert contents(folder.parent) == before
    # If the user names the class, the program imports this module. So it could have imported it
    # before.
    result = ppll_run("resume=run", f"schedule._target_={EVIL}", cwd=folder.parent)
    assert result.returncode == 2
    assert (folder.parent / "touched").exists()


@pytest.mark.slow
def test_a_terminated_run_resumes_without_losing_records(tmp_path: Path, run: Runner) -> None:
    """A batch system terminates the run. It resumes with other stages, and no record is lost."""
    case = [*TINY, "epochs=100000", "eval_every=1", "local.modules=3", "model.dropout=0.1"]
    folder = tmp_path / "outputs" / "DATE" / "TIME"
    with WarmSession([*case, f"hydra.run.dir={folder}"], tmp_path / "printed") as session:
        assert session.wait_until(lambda: "epoch 1/" in session.printed()), session.printed()
        os.killpg(session.pid, signal.SIGTERM)
        assert session.wait() == 128 + signal.SIGTERM
    stopped = json.loads((folder / "summary.json").read_text())
    log = (folder / "ppll-run.log").read_text()
    names = ["config.json", *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides"))]
    kept = {name: (folder / name).read_bytes() for name in names}

    steps = stopped["steps"] + 7
    name = f"resume={folder.relative_to(tmp_path)}"
    result = ppll_run(name, "gpus=3", f"max_steps={steps}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith(f" in {folder.relative_to(tmp_path)}")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", steps)
    assert len(summary["stages"]) == 3
    assert summary["threads"] == stopped["threads"]  # the number was chosen for two workers
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    logged = (folder / "ppll-run.log").read_text()
    assert logged.startswith(log)
    assert f"continuing after step {stopped['steps']}, from " in logged.removeprefix(log)
    assert len(list(tmp_path.glob("outputs/*/*"))) == 1

    expected = run(*case, f"max_steps={steps}", f"threads={summary['threads']}")
    assert_same(Result(summary, folder).tensors(), expected.tensors())
    assert summary["test"] == expected.summary["test"]
    assert summary["train"]["loss"] == expected.summary["train"]["loss"]


def test_a_users_option_needs_its_config_dir_again(tmp_path: Path) -> None:
    """The run died before its first checkpoint. Resuming completes it."""
    options = tmp_path / "conf" / "model"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text("_target_: tests.own_models.Skipping\nwidth: 9\n")
    data = [key for key in TINY if not key.startswith("model")]
    folder = write_config(tmp_path / "run", *data, "schedule=bp", "max_steps=2")
    spoil(folder, model={"_target_": "tests.own_models.Skipping", "width": 4})
    spoil_choice(folder, "model", "mine")
    config = (folder / "config.json").read_bytes()

    result = ppll_run("resume=run", cwd=tmp_path)
    assert result.returncode == 2
    assert "model=mine: there is no such option" in result.stderr
    result = ppll_run("--config-dir=conf", "resume=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the run starts again at step 0" in result.stderr
    assert "completed after 2 steps" in result.stdout
    assert (folder / "config.json").read_bytes() == config
    # The run keeps the values that its option had at the start, although the file has changed.
    assert load_file(folder / "model.safetensors")["first.a.weight"].shape == (4, 3 * 8 * 8)


@pytest.mark.slow
def test_resume_auto_starts_resumes_and_finds_a_run_complete(tmp_path: Path) -> None:
    """A batch system starts the same command again and again. Each time, it stops the run early."""
    given = [*TINY, "timeline=false", "epochs=2", "resume=auto", "hydra.run.dir=run"]
    result = ppll_run(*given, "max_minutes=0.0001", cwd=tmp_path)
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert "max_minutes have passed: stopping after the current batch" in result.stderr
    folder = tmp_path / "run"
    stopped = json.loads((folder / "summary.json").read_text())
    assert stopped["status"] == "interrupted"
    assert stopped["steps"] < 10
    assert os.readlink(folder / "checkpoints" / "last") == f"step-{stopped['steps']}"

    result = ppll_run(*given, "max_minutes=60", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"continuing after step {stopped['steps']}, from " in result.stderr
    summary = (folder / "summary.json").read_bytes()
    assert json.loads(summary)["status"] == "completed"
    result = ppll_run(*given, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "to train longer, start a new run with more epochs, because " in result.stdout
    assert (folder / "summary.json").read_bytes() == summary
