"""A run that was stopped and resumed is equal to a run that was never stopped."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.errors import ConfigError, Interrupted
from ppll_cli.launch.run import Run
from tests.conftest import Result, Runner, own_model, resumed
from tests.launch.resumed import CASES, DATA, assert_as_if_unbroken, lines, train


@pytest.mark.slow
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
        # `test_a_run_can_resume_with_other_stages` also stops it there
        pytest.param("ppll", 22, id="ppll, middle", marks=pytest.mark.slow),
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
            for n in ("ll, modules as stages", "gpipe", "bank")
        ),
        "ppll",
    ],
)
def test_a_run_can_resume_with_other_stages(
    unbroken: Callable[[str], Result], tmp_path: Path, name: str
) -> None:
    """The modules do not change. The run stops twice, and has other stages each time.

    It stops within the first epoch, and within the last one, whose mean loss the summary has.
    """
    start, change = CASES[name]
    stopped = train(tmp_path / "run", *start, "max_steps=4")
    again = resumed(stopped, *change, "max_steps=22")
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "signals"),
    [
        pytest.param("gpipe", [signal.SIGTERM], id="once"),
        pytest.param("ppll", [signal.SIGINT, signal.SIGTERM], id="twice"),
    ],
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


@pytest.mark.slow
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
def test_epochs_may_be_added_if_the_learning_rate_does_not_depend_on_them(tmp_path: Path) -> None:
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
