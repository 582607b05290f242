"""A run that was stopped and resumed is equal to a run that was never stopped."""

import fcntl
import json
import logging
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config import settings
from ppll_cli.errors import ConfigError, Interrupted
from ppll_cli.launch.locks import locked
from ppll_cli.launch.run import Run
from tests.conftest import Result, Runner, assert_same, compose_config, own_model, resumed

STEPS_PER_EPOCH = 5
DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=37"]  # 4 * 8 + 5
DATA += ["data.test_samples=7", "data.pad=1", "data.flip=true", "batch_size=8", "epochs=5"]
DATA += [
    "eval_every=2",
    "log_every=3",
    "optim.schedule=cosine",
    "device=cpu",
    "threads=1",
    "timeline=false",
]
VIT = ["model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
RESNET = ["model=resnet32", "model.depth=14", "optim=sgd", "optim.lr=0.05"]  # BatchNorm
CLIPPED = "optim.clip_norm=0.1"  # smaller than all norms

CASES: dict[str, tuple[list[str], list[str]]] = {
    # Overrides with which a run is started, and changes with which it is resumed
    "bp": (["schedule=bp", *VIT, CLIPPED], []),
    "ll": (["schedule=ll", "local=dgl", "local.modules=4", *RESNET, CLIPPED], []),
    "ll, modules as stages": (["schedule=ll", *VIT], ["gpus=3", "partition=params"]),
    "gpipe": (["schedule=gpipe", *RESNET, CLIPPED], ["gpus=3"]),
    "ppll": (["local=vit_blocks", "local.modules=4", *VIT, CLIPPED], ["gpus=3"]),
    "ppll, modules as stages": (["gpus=3", "local=dgl", *RESNET], ["gpus=2"]),
    "weights": (["local=manpp", "local.lag=3", "local.modules=4", *RESNET], ["gpus=3"]),
    "averages": (["local=dgl", "local.modules=4", "optim.ema=0.9", *RESNET], ["gpus=3"]),
    "bank": (["fba=on", "local.modules=5", *RESNET], ["gpus=4", "transport=queue"]),
}


def train(run_dir: Path, *overrides: str) -> Result:
    config, choices = compose_config([*DATA, *overrides])
    run_dir.mkdir()
    return Result(Run(settings.parse(config), config, choices, run_dir).execute(), run_dir)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """Return a function that makes an uninterrupted run of a case.

    Each run is made once, by one of the processes of pytest-xdist.
    """
    made: dict[str, Result] = {}
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "unbroken"
    folder.mkdir(exist_ok=True)

    def unbroken(name: str) -> Result:
        if name not in made:
            run_dir = folder / name
            with (folder / f"{name}.lock").open("w") as lock:
                # held until the run is made, or its process has failed
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not run_dir.exists():
                    attempt = tmp_path_factory.mktemp("attempt") / "run"
                    train(attempt, *CASES[name][0])
                    attempt.rename(run_dir)
            summary = json.loads((run_dir / "summary.json").read_text())
            made[name] = Result(summary, run_dir)
        return made[name]

    return unbroken


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def copied(unbroken: Callable[[str], Result], tmp_path: Path) -> Callable[[str], Result]:
    """Return a function that copies an uninterrupted run, so that a test can damage it."""

    def copied(name: str) -> Result:
        result = unbroken(name)
        run_dir = tmp_path / "copy"
        shutil.copytree(result.run_dir, run_dir, symlinks=True)
        return Result(result.summary, run_dir)

    return copied


def lines(result: Result) -> list[dict[str, Any]]:
    """Return the lines of the metrics file without the keys that depend on time or partition."""
    found = [json.loads(x) for x in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    without = {"samples_per_second", "seconds", "stage"}
    return [{k: line[k] for k in line if k not in without} for line in found]


def assert_each_once(result: Result) -> None:
    """Check that no step was measured twice."""
    seen = Counter((line["step"], line["split"], line["module"]) for line in lines(result))
    assert set(seen.values()) == {1}


def assert_as_if_unbroken(result: Result, expected: Result) -> None:
    assert_same(result.tensors(), expected.tensors())
    mine, other = result.summary, expected.summary
    assert (mine["status"], mine["steps"]) == ("completed", other["steps"])
    for key in ("test", "per_module", "modules", "epochs"):
        assert mine[key] == other[key]
    assert mine["train"]["loss"] == other["train"]["loss"]
    assert_each_once(result)
    found, wanted = lines(result), lines(expected)
    assert all(line in found for line in wanted)
    # There may be an additional evaluation where the run stopped. Training reports are the same.
    assert all(line in wanted for line in found if line["split"] == "train")
    assert mine.get("test_ema") == other.get("test_ema")
    models = sorted(path.name for path in expected.run_dir.glob("*.safetensors"))
    assert ("model_ema.safetensors" in models) == ("test_ema" in other)
    for model in models:
        assert (result.run_dir / model).read_bytes() == (expected.run_dir / model).read_bytes()


def test_the_cases_save_all_kinds_of_state(unbroken: Callable[[str], Result]) -> None:
    """Otherwise equal checkpoints would show little."""
    names = {name: unbroken(name).tensors() for name in ("bp", "ppll", "bank")}
    assert any(name.endswith(".exp_avg_sq") for name in names["bp"])
    assert any(name.endswith(".momentum_buffer") for name in names["bank"])
    assert any(name.endswith(".running_var") for name in names["bank"])
    assert any(name.startswith("optimizer.auxiliary.2.") for name in names["ppll"])
    assert unbroken("bank").summary["edges"][0]["names"] == ["bank.0", "bank.1", "label", "x"]


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        pytest.param("bp", 22, id="bp, middle", marks=pytest.mark.slow),
        pytest.param("ll", 10, id="ll, epoch", marks=pytest.mark.slow),
        pytest.param("gpipe", 10, id="gpipe, epoch", marks=pytest.mark.slow),
        pytest.param("ppll", 22, id="ppll, middle"),
    ],
)
def test_a_resumed_run_ends_like_an_unbroken_one(
    unbroken: Callable[[str], Result], tmp_path: Path, name: str, stop: int
) -> None:
    """The run stops after two epochs, or within the last epoch.

    The summary has this epoch's mean loss.
    """
    stopped = train(tmp_path / "run", *CASES[name][0], f"max_steps={stop}")
    assert stopped.summary["steps"] == stop
    assert stopped.tensors().keys() == unbroken(name).tensors().keys()
    assert_as_if_unbroken(resumed(stopped, "max_steps=null"), unbroken(name))


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("ll, modules as stages", "gpipe", "ppll")
        ),
        "bank",
    ],
)
def test_a_run_can_resume_with_other_stages(
    unbroken: Callable[[str], Result], tmp_path: Path, name: str
) -> None:
    """The modules do not change. The run stops twice, and has other stages each time."""
    start, change = CASES[name]
    stopped = train(tmp_path / "run", *start, "max_steps=4")
    again = resumed(stopped, *change, "max_steps=13")
    asked = int(change[0].removeprefix("gpus="))
    assert len(again.summary["stages"]) == (1 if "schedule=ll" in start else asked)
    assert_as_if_unbroken(resumed(again, "max_steps=null"), unbroken(name))


@pytest.mark.slow
def test_a_run_can_resume_with_manual_cuts(
    unbroken: Callable[[str], Result], tmp_path: Path
) -> None:
    """The cuts are between modules that were made from the stages of the first start."""
    name = "ppll, modules as stages"
    stopped = train(tmp_path / "run", *CASES[name][0], "max_steps=4")
    starts = [module["units"][0] for module in stopped.summary["per_module"]]
    cut = [f"partition.cuts=[{starts[2]}]", "gpus=2", "max_steps=null"]
    result = resumed(stopped, "partition=manual", *cut)
    assert [stage["modules"] for stage in result.summary["stages"]] == [[0, 1], [2]]
    assert_as_if_unbroken(result, unbroken(name))
    with pytest.raises(ConfigError, match="is inside a module"):
        resumed(stopped, "partition=manual", "partition.cuts=[head]", "gpus=2")


@pytest.mark.parametrize(
    ("name", "signals"),
    [("ppll", [signal.SIGTERM]), ("gpipe", [signal.SIGINT, signal.SIGTERM])],
    ids=["once", "twice"],
)
def test_a_run_stopped_by_a_signal_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, signals: list[signal.Signals]
) -> None:
    """The signal comes while the second checkpoint is written.

    A second signal ends the run at once.
    """
    on_report = Run._on_report
    left = list(signals)

    def report(run: Run, report: dict[str, Any]) -> None:
        if report["kind"] == "saved" and report["step"] == 14 and left:
            os.kill(os.getpid(), left.pop(0))
        on_report(run, report)

    monkeypatch.setattr(Run, "_on_report", report)
    case = [*CASES[name][0], "epochs=100000"]
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted) as interrupted:
        train(run_dir, *case, "checkpoint.every=7")
    assert interrupted.value.signal == signals[-1]
    stopped = json.loads((run_dir / "summary.json").read_text())
    assert stopped["status"] == "interrupted"
    saved = int((run_dir / "checkpoints" / "last").readlink().name.removeprefix("step-"))
    assert saved >= 14 if len(signals) == 1 else saved == 7
    end = f"max_steps={stopped['steps'] + 6}"
    expected = train(tmp_path / "unbroken", *case, end)
    assert_as_if_unbroken(resumed(Result(stopped, run_dir), end), expected)


def test_a_run_can_resume_with_other_intervals(
    unbroken: Callable[[str], Result], tmp_path: Path
) -> None:
    stopped = train(tmp_path / "run", *CASES["ppll"][0], "max_steps=7")
    change = ["eval_every=1", "checkpoint.every=3", "checkpoint.keep=3", "max_steps=null"]
    result = resumed(stopped, *change)
    assert_as_if_unbroken(result, unbroken("ppll"))
    evaluated = {line["step"] for line in lines(result) if line["split"] == "test"}
    assert evaluated == {7, 10, 15, 20, 25}
    kept = {path.name for path in (result.run_dir / "checkpoints").iterdir()}
    assert kept == {"step-21", "step-24", "step-25", "last"}


@pytest.mark.slow
def test_epochs_may_be_added_if_the_learning_rate_does_not_depend_on_them(
    tmp_path: Path,
) -> None:
    case = [*CASES["ppll"][0], "optim.schedule=step", "optim.milestones=[1,3]"]
    expected = train(tmp_path / "long", *case)
    short = train(tmp_path / "short", *case, "epochs=2")
    assert_as_if_unbroken(resumed(short, "epochs=5"), expected)


@pytest.mark.slow
def test_a_run_with_a_users_class_resumes_if_the_class_is_named_again(run: Runner) -> None:
    """All overrides are repeated, or only the class. Its arguments are recorded."""
    model = own_model("Skipping", width=4)
    case = [*[key for key in DATA if not key.startswith("model")], *model, "gpus=3"]
    expected = run(*case)
    stopped = run(*case, "max_steps=7")
    said = r"model\._target_=tests\.own_models\.Skipping: the run directory names a class"
    with pytest.raises(ConfigError, match=said):
        resumed(stopped)
    resumed(stopped, *case, "max_steps=11")
    result = resumed(stopped, model[0], "max_steps=null")
    assert_as_if_unbroken(result, expected)


# Broken checkpoints


def checkpoint(result: Result, step: int) -> Path:
    return result.run_dir / "checkpoints" / f"step-{step}"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "problem"),
    [
        ("stage-0.safetensors", truncate, "stage-0.safetensors has"),
        ("stage-1.safetensors", flip, "stage-1.safetensors does not match its checksum"),
    ],
)
def test_the_checkpoint_before_a_broken_one_is_used(
    unbroken: Callable[[str], Result],
    copied: Callable[[str], Result],
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: Callable[[Path], None],
    problem: str,
) -> None:
    """A machine that crashes can leave such files.

    The last line of the metrics file is incomplete.
    """
    broken = copied("ppll")
    damage(checkpoint(broken, 25) / file)
    metrics = broken.run_dir / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    result = resumed(broken)
    assert f"{checkpoint(broken, 25)} is not used: {problem}" in caplog.text
    assert "continuing after step 20, from " in caplog.text
    assert_as_if_unbroken(result, unbroken("ppll"))
    everything = sorted(lines(unbroken("ppll")), key=str)
    assert sorted(lines(result), key=str) == everything


def break_all(result: Result) -> None:
    for step in (20, 25):
        truncate(checkpoint(result, step) / "stage-0.safetensors")


def remove_all(result: Result) -> None:
    """Remove all checkpoints, as if the run had died while stage 1 wrote the first one."""
    folder = result.run_dir / "checkpoints"
    shutil.rmtree(folder)
    (folder / ".step-5.unfinished").mkdir(parents=True)
    (folder / ".step-5.unfinished" / "stage-1.safetensors").write_bytes(b"half")
    for name in ("summary.json", "model.safetensors"):
        (result.run_dir / name).unlink()


@pytest.mark.parametrize("damage", [break_all, pytest.param(remove_all, marks=pytest.mark.slow)])
def test_a_run_without_a_usable_checkpoint_starts_again(
    unbroken: Callable[[str], Result],
    copied: Callable[[str], Result],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Result], None],
) -> None:
    broken = copied("ppll")
    damage(broken)
    result = resumed(broken, "gpus=1")  # its modules are in the record
    assert caplog.text.count("the run starts again at step 0") == 1
    assert caplog.text.count("is not used") == (2 if damage is break_all else 0)
    assert_as_if_unbroken(result, unbroken("ppll"))
    assert sorted(lines(result), key=str) == sorted(lines(unbroken("ppll")), key=str)


def test_a_run_without_a_checkpoint_keeps_its_modules(
    unbroken: Callable[[str], Result], copied: Callable[[str], Result]
) -> None:
    """Modules follow the stages in this case. Other modules would train something else."""
    name = "ppll, modules as stages"
    broken = copied(name)
    remove_all(broken)
    assert_as_if_unbroken(resumed(broken, "gpus=2"), unbroken(name))


def test_files_of_an_unfinished_checkpoint_are_not_reused(
    unbroken: Callable[[str], Result], copied: Callable[[str], Result]
) -> None:
    """The resumed run has no stage 1 that would replace this file."""
    broken = copied("ppll")
    shutil.rmtree(checkpoint(broken, 25))
    left = checkpoint(broken, 25).with_name(".step-25.unfinished")
    left.mkdir()
    (left / "stage-1.safetensors").write_bytes(b"half")
    result = resumed(broken, "gpus=1")
    assert {path.name for path in checkpoint(broken, 25).iterdir()} == {
        "manifest.json",
        "stage-0.safetensors",
    }
    assert_as_if_unbroken(result, unbroken("ppll"))


def test_a_checkpoint_of_a_later_program_is_refused(copied: Callable[[str], Result]) -> None:
    """The run directory is not changed."""
    result = copied("ppll")
    manifest = checkpoint(result, 25) / "manifest.json"
    manifest.write_text(json.dumps({"format": 2, "what": "ever"}))
    before = contents(result.run_dir)
    with pytest.raises(ConfigError, match="step-25 has format 2, and this program knows 1"):
        resumed(result)
    assert contents(result.run_dir) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder, by path."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Completed runs


@pytest.mark.parametrize(
    "change",
    [
        pytest.param([], marks=pytest.mark.slow),
        ["gpus=1", "max_steps=25"],
        pytest.param(["eval_every=1", "checkpoint.every=3", "max_steps=7"], marks=pytest.mark.slow),
    ],
    ids=["same", "stages", "intervals"],
)
def test_resuming_a_completed_run_changes_nothing(
    unbroken: Callable[[str], Result],
    copied: Callable[[str], Result],
    capsys: pytest.CaptureFixture[str],
    change: list[str],
) -> None:
    """The run was once evaluated again, and lost its measured speed and its predictions."""
    completed = copied("ppll")
    before = contents(completed.run_dir)
    assert resumed(completed, *change).summary == unbroken("ppll").summary
    assert contents(completed.run_dir) == before
    said, last = capsys.readouterr().out.splitlines()[-2:]
    assert said.startswith("the run is complete after 25 steps: there is nothing to do; to train")
    assert last.startswith("test accuracy ")
    assert last.endswith(f" in {completed.run_dir}")


def without_summary(run_dir: Path) -> None:
    (run_dir / "summary.json").unlink()


def of_another_kind(run_dir: Path) -> None:
    (run_dir / "summary.json").write_text("[" * 9999)


def failed_at_the_end(run_dir: Path) -> None:
    (run_dir / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [without_summary, of_another_kind, failed_at_the_end])
def test_missing_results_are_written_again_with_the_measured_speeds(
    unbroken: Callable[[str], Result],
    copied: Callable[[str], Result],
    damage: Callable[[Path], None],
) -> None:
    completed = copied("ppll")
    damage(completed.run_dir)
    result = resumed(completed)
    assert_as_if_unbroken(result, unbroken("ppll"))
    assert sorted(lines(result), key=str) == sorted(lines(unbroken("ppll")), key=str)
    mine, other = result.summary, unbroken("ppll").summary
    assert mine["train"]["samples_per_second"] == other["train"]["samples_per_second"]
    assert mine["pipeline"] == other["pipeline"]
    for now, then in zip(mine["stages"], other["stages"], strict=True):
        shares = [key for key in then if key.endswith("_fraction")]
        assert [now[key] for key in shares] == [then[key] for key in shares]


def test_a_run_beyond_its_recorded_max_steps_is_only_evaluated(
    unbroken: Callable[[str], Result], tmp_path: Path
) -> None:
    """The record does not get the `max_steps` of the second start."""
    stopped = train(tmp_path / "run", *CASES["ppll"][0], "max_steps=4")
    further = resumed(stopped, "max_steps=7")
    again = resumed(stopped)
    assert again.summary["steps"] == 7
    assert_same(again.tensors(), further.tensors())
    assert again.summary["test"] == further.summary["test"] != stopped.summary["test"]
    evaluated = [line["step"] for line in lines(again) if line["split"] == "test"]
    assert {*evaluated} == {4, 7}
    assert_each_once(again)


def test_only_one_process_can_resume_a_run(copied: Callable[[str], Result]) -> None:
    result = copied("ppll")
    before = contents(result.run_dir)
    with locked(result.run_dir), pytest.raises(ConfigError, match="another process is continuing"):
        resumed(result)
    assert contents(result.run_dir) == before
    resumed(result)


def test_a_training_run_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_report = Run._on_report
    refused: list[str] = []

    def report(run: Run, report: dict[str, Any]) -> None:
        if not refused:
            with pytest.raises(ConfigError) as error, locked(run.run_dir):
                raise AssertionError("it is not")
            refused.append(error.value.key)
        on_report(run, report)

    monkeypatch.setattr(Run, "_on_report", report)
    result = train(tmp_path / "run", *CASES["bp"][0], "max_steps=1")
    assert refused == ["resume"]
    refused.clear()
    resumed(result, "max_steps=2")
    assert refused == ["resume"]


def test_a_refused_change_leaves_the_run_unchanged(copied: Callable[[str], Result]) -> None:
    """This change is refused late: it needs the model, after the checkpoint has been read."""
    result = copied("ppll")
    before = contents(result.run_dir)
    with pytest.raises(ConfigError, match="gpus=5: makes 5 stages, but there are only 4 modules"):
        resumed(result, "gpus=5")
    assert contents(result.run_dir) == before
