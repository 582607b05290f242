"""Runs of ppll-run that a benchmark starts."""

import sys
from pathlib import Path

import pytest

from scripts.benchmarks import runs
from scripts.benchmarks.runs import RunFailedError, machine, run


def test_a_failed_run_is_reported_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short program takes the place of ppll-run, which would import Hydra and more."""
    said = "import sys; print('ppll-run:', *sys.argv[1:2], file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(runs, "ppll_run", lambda *given: [sys.executable, "-c", said, *given])
    with pytest.raises(RunFailedError, match=r"^epochs=none ended with 2: ppll-run: epochs=none$"):
        run(["epochs=none"], tmp_path / "run")


@pytest.mark.slow
def test_files_of_an_earlier_attempt_are_removed(tmp_path: Path) -> None:
    """ppll-run would refuse a folder with files of an attempt that was killed."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    small = ["model.dim=16", "model.depth=2", "max_steps=1", "data.eval_limit=4", "device=cpu"]
    summary = run([*small, "threads=1"], folder)
    assert summary["status"] == "completed"


def test_machine_describes_the_hardware() -> None:
    found = machine()
    assert found["processor"]
    assert found["memory_bytes"] > 2**30
    assert found["torch"].startswith("2.")


@pytest.mark.slow
def test_an_interrupted_run_is_continued_if_its_overrides_are_the_same(tmp_path: Path) -> None:
    small = ["model.dim=16", "model.depth=2", "max_steps=2", "data.eval_limit=4", "device=cpu"]
    small += ["threads=1", "timeline=false"]
    stopped = [*small, "max_minutes=0.0001"]  # this run ends with a checkpoint after step 0
    for said in ("max_minutes have passed", "continuing after step 0, from "):
        with pytest.raises(RunFailedError, match=f"ended with 143: {said}"):
            run(stopped, tmp_path / "run", continues=True)
    with pytest.raises(RunFailedError, match="ended with 2: "):
        run(["epochs=none"], tmp_path / "refused", continues=True)
    assert not (tmp_path / "refused.json").exists()  # it would fail again
    whole = run(small, tmp_path / "run", continues=True)
    assert "parts" not in whole  # it is not continued, because its overrides differ
    assert whole["status"] == "completed"
