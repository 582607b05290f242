"""Resuming a run that is complete, or that another process trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.launch.locks import locked
from ppll_cli.launch.run import Run
from tests.conftest import Result, assert_same, resumed
from tests.launch.resumed import (
    CASES,
    assert_as_if_unbroken,
    assert_each_once,
    contents,
    lines,
    train,
)


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


@pytest.mark.parametrize(
    "damage",
    [
        without_summary,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (of_another_kind, failed_at_the_end)),
    ],
)
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


@pytest.mark.slow
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
    with pytest.raises(ConfigError, match=r"only 4 modules; use gpus=4 at most$"):
        resumed(result, "gpus=5")
    assert contents(result.run_dir) == before
