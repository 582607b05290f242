"""The soak benchmark: its plans, its checks, and one real fault."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ppll_cli.config import settings
from scripts.benchmarks import soak
from scripts.benchmarks.faults import Plan
from scripts.benchmarks.soak import CASES, COMMON, FAULTS, Outcome, plans, summary
from tests.conftest import compose_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")


def plan(kind: str, moment: str, step: int = 5) -> Plan:
    return Plan("vit ll 1", kind, moment, stage=2, step=step, delay_s=0.0, place=0.5)


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_valid_settings(case: str) -> None:
    config, choices = compose_config([*COMMON, *CASES[case]])
    gpus = settings.parse(config).gpus
    assert case.split() == [choices["model"].removesuffix("32"), choices["schedule"], str(gpus)]


def test_plans_have_all_schedules_and_faults_and_depend_on_the_seed() -> None:
    planned = plans(20, seed=1)
    assert {each.case.split()[1] for each in planned} == {"bp", "ll", "pp", "gpipe", "1f1b", "ppll"}
    assert sorted((each.kind, each.moment) for each in planned) == sorted(FAULTS)
    assert planned == plans(20, seed=1) == plans(100, seed=1)[:20]
    assert planned != plans(20, seed=2)


@pytest.mark.slow
def test_a_short_soak_finds_a_fault_and_writes_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is a short run, a damaged checkpoint, and the resumed run."""
    monkeypatch.chdir(tmp_path)
    # The run is long enough not to end before its fault, even on a busy machine.
    case = [*CASES["vit ll 1"], "epochs=50", "eval_every=50", "data.test_samples=8"]
    case += ["model.dim=16", "timeline=false"]
    monkeypatch.setattr(soak, "CASES", {"vit ll 1": case})
    monkeypatch.setattr(soak, "plans", lambda runs, seed: [plan("truncate", "training", 15)])
    soak.main(["--jobs", "1"])
    written = json.loads(soak.RESULT.read_text())
    assert written["machine"]["cores"] >= 1
    counts = {key: written[key] for key in ("runs", "faults_injected", "detected", "recovered")}
    assert set(counts.values()) == {1}
    assert written["leaks"] == 0
    (row,) = written["rows"]
    assert row["status"] == 1
    assert 0 < row["detection_s"] == written["longest_detection_s"]
    assert row["resumed_from"] in range(5, 50 * soak.BATCHES, 5)
    assert row["notes"] == []
    assert [path.name for path in soak.FOLDER.iterdir()] == ["vit-ll-1"]
    assert "1 runs: 1 faults injected" in capsys.readouterr().out


def test_a_run_that_ended_before_its_fault_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(soak, "ppll_run", lambda *arguments: [sys.executable, "-c", "pass"])
    outcome = soak.endure(plan("kill worker", "training"), tmp_path / "run", b"")
    assert not outcome.injected
    assert outcome.status == 0
    assert outcome.notes == ["it ended before its fault"]


@pytest.mark.parametrize("fault", ["detected", "recovered", "left"])
def test_an_outcome_with_a_failure_fails_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    outcome = Outcome(plan("interrupt", "training"), True, 130, True, 0.5, [], 5, True)
    setattr(outcome, fault, ["process 1"] if fault == "left" else False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(soak, "soak", lambda planned, jobs, console: [outcome])
    with pytest.raises(SystemExit) as ended:
        soak.main([])
    assert ended.value.code == 1


def test_the_summary_counts_only_injected_faults() -> None:
    outcomes = [
        Outcome(plan("interrupt", "training"), True, 130, True, 0.5, [], 5, True),
        Outcome(plan("stop worker", "training"), True, 1, True, 9.5, ["process 1"], 5, False),
        Outcome(plan("kill parent", "training"), False, 0, notes=["it was over"]),
    ]
    found = summary(outcomes)
    rows = found.pop("rows")
    assert found == {
        "runs": 3,
        "faults_injected": 2,
        "detected": 2,
        "recovered": 1,
        "leaks": 1,
        "longest_detection_s": 9.5,
    }
    assert [(row["kind"], row["injected"]) for row in rows][1:] == [
        ("stop worker", True),
        ("kill parent", False),
    ]


def test_a_run_that_ends_in_another_way_is_a_failure(tmp_path: Path) -> None:
    outcome = Outcome(plan("interrupt", "training"), status=1)
    assert soak._wrong(outcome.plan, outcome, tmp_path, "Traceback") == [
        "it ended with 1 instead of 130",
        "a traceback was printed",
        "there is no checkpoint",
        "summary.json is missing, or its status is not interrupted",
    ]
    outcome = Outcome(plan("kill worker", "training"), status=1)
    assert soak._wrong(outcome.plan, outcome, tmp_path, "ppll-run: stage 1 (cpu): gone") == [
        "the command to continue was not printed",
        "stage 0 was not named first",
    ]
    outcome.status = None
    assert soak._wrong(outcome.plan, outcome, tmp_path, "") == ["it did not end within 120 s"]


def test_different_weights_are_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The program that resumes the run is replaced by one that does nothing."""
    path = tmp_path / "run" / "model.safetensors"
    path.parent.mkdir()
    (path.parent / "config.json").touch()
    script = "print('continuing after step 5, from somewhere')"
    monkeypatch.setattr(soak, "ppll_run", lambda *arguments: [sys.executable, "-c", script])
    results = []
    for weight in (1.0, 2.0):
        save_file({"a": torch.full((1,), weight)}, path)
        outcome = Outcome(plan("kill worker", "training"))
        reference = path.read_bytes() if weight == 1.0 else b""
        soak._recover(outcome.plan, outcome, tmp_path, reference)
        assert outcome.resumed_from == 5
        results.append((outcome.recovered, outcome.notes))
    assert results == [(True, []), (False, ["its weights differ"])]
