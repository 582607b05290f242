"""The record of the initial weights of a run, and how the run resumes."""

import json
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.launch.beginning import check_weights
from ppll_cli.launch.resume import recorded
from tests.conftest import Runner, resumed
from tests.prepare.test_weights import saved, tiny_model

COURSE = ["data=digits", "model.dim=16", "model.depth=2", "model.heads=2", "schedule=bp"]


def test_a_run_records_its_weights_file_and_resumes_without_it(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path, tiny_model())
    monkeypatch.chdir(tmp_path)
    result = run(*COURSE, "weights=w.safetensors", "max_steps=2")
    used = result.summary["weights"]
    assert used["file"] == str(file)
    config = json.loads((result.run_dir / "config.json").read_text())
    assert (config["weights"], config["weights_used"]) == (str(file), used)
    given = [f"resume={result.run_dir}", "weights=w.safetensors"]
    before = recorded(given)
    assert before is not None
    with pytest.raises(ConfigError, match=r"weights=.*: this is not the file that the run"):
        check_weights(before, {**used, "sha256": "0"})
    check_weights(before, used)
    check_weights(before, None)
    file.unlink()
    with pytest.raises(ConfigError, match="weights=other: the run was started with"):
        resumed(result, "weights=other")
    continued = resumed(result, "weights=w.safetensors", "max_steps=3")  # as the user gave it
    assert continued.summary["steps"] == 3
    assert continued.summary["weights"] == used
