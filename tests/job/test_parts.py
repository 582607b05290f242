"""Reports of a run with several parts: totals, and speeds over parts with equal conditions."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.job.parts import Parts, Worker, rate
from ppll_cli.launch.summary import GIT_LIMIT_S, _git_commit
from ppll_cli.leaves.files import digest_of
from ppll_cli.pipeline.instructions import Forward
from ppll_cli.prepare.preparation import Prepared
from tests.conftest import Result, Runner, prepared, resumed, with_settings

DATA = ["data=synthetic", "data.size=8", "data.train_samples=37", "data.test_samples=7"]
DATA += ["batch_size=8", "model.dim=16", "model.depth=2", "model.heads=2", "local.modules=2"]
SHORT = [*DATA, "epochs=5", "optim.schedule=constant", "eval_every=9"]


@pytest.fixture(scope="module")
def job() -> Prepared:
    return prepared(*DATA, "gpus=2", "threads=1")


def counted(batches: int, wall_s: float, peak: int | None = 5) -> Worker:
    """Return a worker's counts for batches of eight samples."""
    return {
        "batches": batches,
        "samples": 8 * batches,
        "wall_s": wall_s,
        "spent_s": {"compute": wall_s / 2, "starved": wall_s / 4},
        "instruction_s": {repr(Forward(0, 0)): wall_s / 8},
        "bytes_sent": {"1": 100 * batches},
        "peak_memory_bytes": peak,
        "peak_reserved_bytes": None if peak is None else 2 * peak,
    }


def test_a_part_lists_its_steps_speed_and_conditions(job: Prepared) -> None:
    parts = Parts(job.job, "ring")
    assert parts.listed(0, 1.0, []) == []
    (part,) = parts.listed(7, 2.5, [counted(4, 1.0), counted(4, 2.0)])
    assert part == {
        "from": 0,
        "to": 7,
        "seconds": 2.5,
        "samples": 37 + 2 * 8,  # an epoch of five batches, and two more batches
        "samples_per_second": 16.0,  # the speed of the last stage
        "gpus": 2,
        "devices": ["cpu", "cpu"],
        "threads": 1,
        "transport": "ring",
        "stages": part["stages"],
    }


def test_counts_of_parts_with_equal_conditions_are_added(job: Prepared) -> None:
    first = Parts(job.job, "ring")
    kept = first.counted([counted(4, 1.0, 7), counted(4, 2.0)])
    kept = json.loads(json.dumps(kept))  # as JSON, like a manifest
    again = Parts(job.job, "ring", (), kept)
    both = again.alike([counted(2, 1.0, None), counted(2, 1.0)])
    assert both[0] == {**counted(6, 2.0, 7)}
    assert rate(both, 1) == 48 / 3.0
    assert again.alike([]) == kept[0]["workers"]  # the current part is failed or too short
    other = Parts(job.job, "queue", (), kept)
    assert other.alike([]) == []
    mine = [counted(1, 1.0), counted(1, 1.0)]
    assert other.alike(mine) == mine
    assert other.counted(mine)[0] == kept[0]  # needed if the run returns to these conditions
    assert rate([], 1) is None
    assert rate([counted(0, 0.0)], 1) is None


def test_counts_with_and_without_recompute_are_not_added(job: Prepared) -> None:
    mine = [counted(1, 1.0), counted(1, 1.0)]
    kept = Parts(job.job, "ring").counted([counted(4, 1.0), counted(4, 2.0)])
    again = Parts(with_settings(job.job, recompute=True), "ring", (), kept)
    assert again.alike(mine) == mine
    (part,) = again.listed(7, 2.5, mine)
    assert part["recompute"] is True
    assert "recompute" not in kept[0]["conditions"]  # older programs did not record it


def test_counts_with_names_of_older_programs_are_not_added(job: Prepared) -> None:
    """If they were added, predictions would use means in which their times are missing."""
    kept = Parts(job.job, "ring").counted([counted(4, 1.0), counted(4, 2.0)])
    kept[0]["workers"][0]["instruction_s"] = {"LocalUpdate(chunk=0, micro_batch=0)": 1.0}
    again = Parts(job.job, "ring", (), kept)
    mine = [counted(2, 1.0), counted(2, 1.0)]
    assert again.alike(mine) == mine
    assert again.counted(mine)[0] == kept[0]


def parts(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result.summary["train"]["parts"]
    return found


@pytest.mark.slow
def test_the_summary_has_totals_over_all_parts(run: Runner) -> None:
    """The second part is like the first.

    The third is too short for a speed; the fourth uses one GPU.
    """
    first = run(*SHORT, "gpus=2", "max_steps=8")
    (one,) = parts(first)
    assert (one["from"], one["to"], one["samples"]) == (0, 8, 37 + 3 * 8)
    assert one["seconds"] == first.summary["train"]["seconds"]
    assert one["samples_per_second"] == first.summary["train"]["samples_per_second"]

    second = resumed(first, "max_steps=16")
    summary = second.summary
    assert [(part["from"], part["to"]) for part in parts(second)] == [(0, 8), (8, 16)]
    seconds = [part["seconds"] for part in parts(second)]
    assert summary["train"]["seconds"] == pytest.approx(sum(seconds))
    speeds = sorted(part["samples_per_second"] for part in parts(second))
    assert speeds[0] < summary["train"]["samples_per_second"] < speeds[1]
    sent = [result.summary["edges"][0]["bytes_sent"] for result in (first, second)]
    assert sent[1] > 1.8 * sent[0]

    third = resumed(first, "max_steps=18")
    assert parts(third)[:2] == [
        parts(second)[0],
        {**parts(second)[1], "seconds": seconds_at(third)},
    ]
    assert parts(third)[2]["samples_per_second"] is None
    for key in ("bubble_fraction", "predicted_bubble_fraction", "predicted_samples_per_second"):
        assert third.summary["pipeline"][key] == pytest.approx(summary["pipeline"][key])
    speed = summary["train"]["samples_per_second"]
    assert third.summary["train"]["samples_per_second"] == pytest.approx(speed)
    shares = [stage["compute_fraction"] for stage in summary["stages"]]
    assert [stage["compute_fraction"] for stage in third.summary["stages"]] == shares

    fourth = resumed(first, "gpus=1", "max_steps=25")
    assert [part["gpus"] for part in parts(fourth)] == [2, 2, 2, 1]
    cuts = [part["stages"] for part in parts(fourth)]
    assert cuts == [*[parts(first)[0]["stages"]] * 3, []]
    assert len(cuts[0]) == 1  # two stages; the summary lacked `stages`, which docs/resume.md shows
    own = parts(fourth)[-1]["samples_per_second"]
    assert fourth.summary["train"]["samples_per_second"] == own
    assert fourth.summary["train"]["seconds"] == pytest.approx(
        sum(part["seconds"] for part in parts(fourth))
    )


def seconds_at(result: Result) -> float:
    """Return the duration of the second part.

    It ends at the part's last checkpoint, because later work is not counted.
    """
    seconds: float = parts(result)[1]["seconds"]
    return seconds


def test_work_after_the_last_checkpoint_is_not_counted(run: Runner) -> None:
    """A kill between two checkpoints makes the run repeat this work."""
    killed = run(*SHORT, "gpus=2", "max_steps=15", "checkpoint.keep=9")
    shutil.rmtree(killed.run_dir / "checkpoints" / "step-15")
    (killed.run_dir / "summary.json").unlink()
    again = resumed(killed, "max_steps=20")
    assert [(part["from"], part["to"]) for part in parts(again)] == [(0, 10), (10, 20)]
    assert parts(again)[0]["seconds"] < killed.summary["train"]["seconds"]
    assert sum(part["samples"] for part in parts(again)) == 4 * 37


@pytest.mark.slow
def test_a_run_whose_manifest_has_no_parts_can_be_resumed(run: Runner) -> None:
    old = run(*SHORT, "gpus=2", "max_steps=5")
    path = old.run_dir / "checkpoints" / "step-5" / "manifest.json"
    said = json.loads(path.read_text())
    for key in ("parts", "counted", "sha256"):
        del said[key]
    path.write_text(json.dumps({**said, "sha256": digest_of(said)}))
    result = resumed(old, "max_steps=10")
    assert [(part["from"], part["to"]) for part in parts(result)] == [(5, 10)]


# The commit that a run records


def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """Install a program `git`, or make it missing."""
    if script is not None:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("ppll_cli.launch.summary.GIT_LIMIT_S", min(GIT_LIMIT_S, 0.5))


@pytest.mark.parametrize(
    "script", [None, "exit 1", "echo no commit", "printf '\\377'", "while true; do :; done"]
)
def test_a_failing_git_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    git(tmp_path, monkeypatch, script)
    assert _git_commit() is None


def test_the_commit_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, monkeypatch, "echo " + "ab" * 20)
    root = Path(__file__).parents[2]
    assert _git_commit() == ("ab" * 20 if (root / ".git").exists() else None)


def test_the_commit_is_the_programs_own_where_git_names_another_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook of git, and an alias, call programs with GIT_DIR set to the user's repository."""
    own = _git_commit()
    run_git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*run_git, *arguments], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert _git_commit() == own
