"""The check of a machine's GPUs, run on the CPU."""

import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ppll_cli.config import settings
from scripts.check_gpu import __main__ as program
from scripts.check_gpu import running, steps
from scripts.check_gpu.equal import Equal, compared, wrong
from scripts.check_gpu.report import Outcome, Report, skipped, verdict
from scripts.check_gpu.running import Check, Program, Train, figures, run_steps
from tests.conftest import compose_config, pretend_devices

ROOT = Path(__file__).parents[2]
HEEDS = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); "
HANGS = "import signal, time; signal.signal(15, signal.SIG_IGN); "
SLEEPS = "print('ready', flush=True); time.sleep(60)"


@dataclass(frozen=True)
class Does:
    """A step that calls a function."""

    name: str
    does: Callable[[], Outcome]

    def act(self, check: Check) -> Outcome:
        return self.does()


@pytest.fixture
def check(tmp_path: Path) -> Check:
    (tmp_path / "work" / "runs").mkdir(parents=True)
    (tmp_path / "found").mkdir()
    report = Report(tmp_path / "found")
    return Check(report=report, cuda=False, quick=True, work=tmp_path / "work", limit_s=100.0)


def instead(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Replace training runs by a script."""
    monkeypatch.setattr(running, "ppll_run", lambda *_: [sys.executable, "-c", script])


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_fails_unless_its_status_is_0(
    monkeypatch: pytest.MonkeyPatch, check: Check, status: int
) -> None:
    instead(monkeypatch, f"print('said'); raise SystemExit({status})")
    outcome = Train("a run", []).act(check)
    assert outcome.state == ("FAILED" if status else "ok")
    assert outcome.output == "said\n"
    assert outcome.facts["status"] == status


@pytest.mark.slow
def test_a_run_that_stops_at_its_time_limit_is_skipped(
    monkeypatch: pytest.MonkeyPatch, check: Check
) -> None:
    """A slow machine may not complete a run in time.

    Only a run that does not stop either has failed.
    """
    instead(monkeypatch, HEEDS + SLEEPS)
    outcome = Train("slow", [], limit_s=3.0).act(check)
    assert outcome.state == "skipped"
    assert outcome.facts == {"reason": "out of time, still training"}


@pytest.mark.slow
def test_a_run_that_does_not_stop_at_its_time_limit_fails(
    monkeypatch: pytest.MonkeyPatch, check: Check
) -> None:
    monkeypatch.setattr(running, "STOP_S", 0.2)
    instead(monkeypatch, HANGS + SLEEPS)
    assert Train("hung", [], limit_s=3.0).act(check).state == "FAILED"
    assert Train("compiling", [], limit_s=3.0, stops=False).act(check).state == "skipped"


def test_a_program_fails_by_its_status_and_its_output_is_kept(check: Check) -> None:
    outcome = Program("tests", ["-c", "print('3 failed'); raise SystemExit(1)"], 30.0, "log").act(
        check
    )
    assert outcome.state == "FAILED"
    assert outcome.facts["last"] == "3 failed"
    assert "3 failed" in (check.report.folder / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("line", "state"), [("FAILED", "FAILED"), ("PASSED", "skipped")])
def test_a_failed_test_counts_even_if_later_tests_take_too_long(
    check: Check, line: str, state: str
) -> None:
    script = f"import time; print('[gw1] [ 50%] {line} a.py::b', flush=True); time.sleep(60)"
    outcome = Program("tests", ["-c", script], 3.0).act(check)
    assert outcome.state == state
    assert ("a.py::b" in str(outcome.facts["reason"])) == (state == "FAILED")


def test_late_steps_are_skipped_and_an_exception_fails_a_step(check: Check) -> None:
    def broken() -> Outcome:
        raise ValueError("a fault")

    run_steps(check, [Does("fine", lambda: verdict(True)), Does("broken", broken)], 2)
    late = Check(report=check.report, cuda=False, quick=True, work=check.work, limit_s=0.0)
    run_steps(late, [Does("late", broken)], 1)
    states = {name: outcome.state for name, outcome in check.report.outcomes.items()}
    assert states == {"fine": "ok", "broken": "FAILED", "late": "skipped"}
    assert check.report.failed() == ["broken"]


def test_a_run_that_ends_wrongly_fails_its_step_unless_the_time_is_over(check: Check) -> None:
    """The step then has not waited long enough, and once was counted as failed."""
    assert wrong(check, "said", status=None).state == "FAILED"
    late = Check(report=check.report, cuda=False, quick=True, work=check.work, limit_s=0.0)
    assert wrong(late, "said", status=None).state == "skipped"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", []),
        ("one\nValueError: two\n", ["ValueError: two"]),
        ("ppll-run: first\nppll-run: stage 1: no\n  log: x\n", ["ppll-run: stage 1: no"]),
        (
            "[gw0] [ 9%] FAILED a.py::b \nFAILED a.py::b - no\nERROR c.py\n2 failed",
            ["FAILED a.py::b - no", "ERROR c.py"],
        ),
    ],
)
def test_a_failed_step_tells_the_reason(check: Check, output: str, reason: list[str]) -> None:
    """The table named the failed steps, but only the log said why."""
    outcome = verdict(False, output)
    assert outcome.facts == {"reason": reason}
    assert verdict(False, output, reason="known").facts == {"reason": "known"}
    check.report.add("wrong", outcome)
    table = (check.report.folder / "table.txt").read_text()  # written before the check ends
    assert all(each in table for each in reason)
    assert table.endswith("failed: wrong\n")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (None, []),
        ([{"fact": "start"}, {"fact": "shared_events", "right": True}], []),
        ([{"fact": "start"}, {"fact": "shared_events", "right": False}], ["transport.ipc=false"]),
        ([{"fact": "failed", "step": "shared_events"}], ["transport.ipc=false"]),
    ],
)
def test_runs_do_without_ipc_where_the_probe_could_not_use_it(
    check: Check, facts: list[dict[str, object]] | None, expected: list[str]
) -> None:
    if facts is not None:
        (check.report.folder / "probe.json").write_text(json.dumps(facts))
    assert check.transport() == []
    assert replace(check, cuda=True).transport() == expected


def test_the_table_counts_outcomes_and_names_failed_steps(check: Check) -> None:
    check.report.add("facts", verdict(True, facts=[{"fact": "start", "first_kernel_s": 3.25}]))
    check.report.add("run", verdict(True, samples_per_second=1234.56, peak_memory_bytes=[1 << 25]))
    check.report.add("other", skipped("no time left"))
    check.report.add("wrong", verdict(False, "the reason", different=3))
    table = check.report.table()
    assert "start: first_kernel_s 3.25" in table
    assert re.search(r"^ok .* run +samples_per_second=1235 peak_memory_bytes=32MiB$", table, re.M)
    assert re.search(r"^skipped .* other +reason=no time left$", table, re.M)
    assert "2 passed, 1 failed, 1 skipped" in table
    assert table.endswith("failed: wrong")
    assert (check.report.folder / "table.txt").read_text() == table + "\n"
    results = json.loads((check.report.folder / "results.json").read_text())
    assert results["wrong"]["different"] == 3
    assert results["wrong"]["reason"] == ["the reason"]
    assert "the reason" in (check.report.folder / "jobs.log").read_text()


def test_runs_are_compared_bit_for_bit(check: Check) -> None:
    def write(name: str, **tensors: torch.Tensor) -> Path:
        folder = check.folder(name) / "checkpoints" / "last"
        folder.mkdir(parents=True)
        (check.folder(name) / "summary.json").write_text("{}")
        save_file(tensors, folder / "stage-0.safetensors")
        return check.folder(name)

    one = write("one", a=torch.tensor([1.0, 2.0]), b=torch.zeros(2))
    same = compared(one, write("the same", a=torch.tensor([1.0, 2.0]), b=torch.zeros(2)))
    assert (same.state, same.output) == ("ok", "")
    other = compared(one, write("other", a=torch.tensor([1.0, 2.5]), b=torch.zeros(2)))
    assert other.state == "FAILED"
    assert other.facts["different"] == 1
    assert other.facts["largest"] == 0.5
    assert compared(one, write("fewer", a=torch.tensor([1.0, 2.0]))).state == "FAILED"
    assert Equal("=", "one", "the same").act(check).state == "ok"
    assert Equal("=", "one", "missing").act(check).state == "skipped"


@pytest.mark.slow
def test_the_check_trains_and_compares_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line runs two valid runs and a wrong one, and the table has their outcomes."""

    def some(check: Check) -> list[running.Step]:
        wanted = [step for step in exact(check) if step.name in ("ll", "ppll")]
        return [*wanted, Train("wrong", ["gpus=none"])]

    exact = steps.exact
    monkeypatch.setattr(steps, "exact", some)
    monkeypatch.setattr(steps, "equal", lambda _: [Equal("ll = ppll", "ll", "ppll")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    output = tmp_path / "found"
    arguments = ["--device=cpu", "--quick", "--only=exact", "--patience=5", f"--output={output}"]
    assert program.main(arguments) == 1
    results = json.loads((output / "results.json").read_text())
    assert {name: each["state"] for name, each in results.items()} == {
        "ll": "ok",
        "ppll": "ok",
        "wrong": "FAILED",
        "ll = ppll": "ok",
    }
    assert results["wrong"]["status"] == 2
    assert len([*output.iterdir()]) <= 8


def test_a_missing_gpu_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pretend_devices(monkeypatch, 0)
    assert program.main(["--device=cuda", f"--output={tmp_path / 'found'}"]) == 2
    assert capsys.readouterr().err == (
        "check-gpu: there is no CUDA device; DEVICE=cpu tries the check itself on the CPU\n"
    )


def test_a_check_in_the_background_can_interrupt_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shells start it with SIGINT ignored; its runs ignored it too, and "interrupt" failed."""
    script = "import signal; raise SystemExit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    group = steps.Group("facts", [Program("a run", ["-c", script], 30.0)])
    monkeypatch.setattr(program, "groups", lambda _: [group])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert program.main(["--device=cpu", f"--output={tmp_path / 'found'}"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_unknown_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--only=exakt"])
    assert ended.value.code == 2
    assert "there is no group 'exakt'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("cuda", "quick"), [(True, False), (False, True)])
def test_every_run_of_the_check_has_valid_settings(
    check: Check, monkeypatch: pytest.MonkeyPatch, cuda: bool, quick: bool
) -> None:
    """Otherwise a step with a renamed key would only fail on a machine with a GPU."""
    monkeypatch.setattr(steps, "_several", lambda _: True)
    asked = Check(
        report=check.report, cuda=cuda, quick=quick, work=check.work, limit_s=check.limit_s
    )
    groups = [*steps.groups(asked)]
    runs = [step for group in groups for step in group.steps if isinstance(step, Train)]
    assert len(runs) > 25
    for run in runs:
        settings.parse(compose_config([*run.overrides])[0])
    names = [step.name for group in groups for step in group.steps]
    assert len(names) == len(set(names))
    assert program.GROUPS.split(", ") == [group.name for group in groups] or quick
    named = {run.name for run in runs}
    compares = [step for group in groups for step in group.steps if isinstance(step, Equal)]
    assert compares
    assert {name for each in compares for name in (each.one, each.other)} <= named


def test_figures_leave_out_unknown_values(tmp_path: Path) -> None:
    assert figures(tmp_path) == {}
    (tmp_path / "summary.json").write_text(
        json.dumps({"train": {"samples_per_second": None}, "stages": [{"peak_memory_bytes": 5}]})
    )
    assert figures(tmp_path) == {"peak_memory_bytes": [5]}


def test_the_checks_packages_are_pinned() -> None:
    text = (ROOT / "scripts" / "check-gpu").read_text()
    (names,) = re.findall(r'^packages="([^"]+)"', text, re.M)
    pinned = re.findall(r"^([^=#\n]+)==", (ROOT / "constraints.txt").read_text().lower(), re.M)
    assert {name.lower() for name in names.split()} <= {*pinned}


@pytest.mark.slow
def test_the_check_restarts_a_killed_worker(check: Check) -> None:
    (step,) = [step for step in steps.users(check) if step.name == "restarted worker"]
    outcome = step.act(check)
    assert outcome.state == "ok", outcome.output
    assert outcome.facts["restarted"]
