"""The page that compares speeds, as it would be sent to wandb."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.observe.tracker import line_scalars, stage_scalars
from scripts import wandb_dashboard
from tests.observe.conftest import STAGES, line


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the script in a separate process, because the library warns when it is imported."""
    command = [sys.executable, "-m", "scripts.wandb_dashboard", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=root
    )


def panels(page: dict[str, Any]) -> list[dict[str, Any]]:
    sections = page["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def test_panels_read_keys_that_runs_record() -> None:
    result = make("--dry-run", "--metric", "accuracy", "--baseline", "abc", "--entity", "me")
    assert (result.returncode, result.stderr) == (0, "")
    page = json.loads(result.stdout)
    names = [section["name"] for section in page["section"]["panelBankConfig"]["sections"]]
    assert names == ["Speed", "Speed-up", "Utilisation", "Learning", "Memory"]
    lines = [line(1, samples_per_second=1.0), line(1, split="test")]
    recorded = {key for it in lines for key in line_scalars(it)} | {*stage_scalars(STAGES)}
    recorded = {key.replace("stage_0/", "stage_N/") for key in recorded}
    curves = [
        panel["config"] for panel in panels(page) if panel["viewType"] == "Run History Line Plot"
    ]
    assert len(curves) == 9
    for curve in curves:
        first = curve["metrics"][0].replace("stage_0/", "stage_N/")
        assert first in recorded
        assert curve["xAxis"] in ("train_seconds", "step")
    grouped = [panel["config"].get("groupBy") for panel in panels(page)]
    assert {"choices.value.schedule", "resolved.value.gpus"} <= {*grouped}
    assert '"speed_up_over_bp_mean"' in result.stdout
    assert page["section"]["runSets"][0]["baselineRunId"]


@pytest.mark.slow
def test_without_a_metric_panels_show_the_metrics_of_all_tasks() -> None:
    page = json.loads(make("--dry-run", "--entity", "me").stdout)
    shown = [panel["config"].get("metrics") for panel in panels(page)]
    assert shown.count([f"test/{metric}" for metric in ("accuracy", "ap", "psnr")]) == 2


def test_a_missing_key_is_reported_in_one_line() -> None:
    result = make()
    assert (result.returncode, result.stdout) == (2, "")
    (complaint,) = result.stderr.splitlines()
    assert complaint.endswith("wandb login, or set WANDB_API_KEY; --dry-run needs no key")


def test_a_missing_library_is_reported_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(
        ConfigError, match=r"is not installed; .*python\S* -m pip install wandb-workspaces$"
    ):
        wandb_dashboard.main(["--dry-run"])


def test_the_script_installs_the_library() -> None:
    root = Path(__file__).parents[2]
    assert 'set_up "[all]"' in (root / "scripts" / "wandb_dashboard").read_text()
    assert "\ndashboard = [" in (root / "pyproject.toml").read_text()
