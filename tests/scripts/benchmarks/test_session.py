"""Sessions of the benchmarks find and end everything that a program leaves behind."""

import mmap
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.benchmarks import __main__ as program
from scripts.benchmarks import session
from scripts.benchmarks.session import Session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")

SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"
FORKS = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
"""


def test_a_process_left_behind_is_found_and_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "LEAVE_S", 0.2)
    with Session([sys.executable, "-c", FORKS], tmp_path / "printed") as started:
        assert started.wait() == 0
        (left,) = started.left()
        assert "time.sleep" in left
    monkeypatch.undo()
    assert started.left() == []


def test_a_file_left_in_shared_memory_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    (shared / "before").touch()
    monkeypatch.setattr(session, "SHARED_MEMORY", shared)
    monkeypatch.setattr(session, "LEAVE_S", 0.2)
    script = f"open({str(shared / 'left')!r}, 'w').close()"
    with Session([sys.executable, "-c", script], tmp_path / "printed") as started:
        assert started.wait() == 0
        assert started.left() == [str(shared / "left")]


def test_a_file_in_shared_memory_used_by_another_process_is_no_leak(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "SHARED_MEMORY", tmp_path)
    with Session([sys.executable, "-c", "pass"], Path(os.devnull)) as started:
        (tmp_path / "used").write_bytes(b"x")
        with (tmp_path / "used").open("r+b") as file, mmap.mmap(file.fileno(), 1):
            assert started.wait() == 0
            assert started.left() == []


def test_waiting_for_a_condition_ends_with_the_program(tmp_path: Path) -> None:
    with Session([sys.executable, "-c", SLEEPER], tmp_path / "printed") as started:
        assert started.wait_until(lambda: "ready" in started.printed())
        assert not started.wait_until(lambda: False, limit_s=0.05)
        assert started.wait(0.05) is None
        started.signal(signal.SIGTERM, started.pid)
        assert not started.wait_until(lambda: False)
        assert started.status == -signal.SIGTERM


def test_a_benchmark_in_the_background_can_interrupt_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shells start it with SIGINT ignored; its runs ignored it too."""

    def interrupt(_: object) -> None:
        with Session([sys.executable, "-c", SLEEPER], tmp_path / "printed") as started:
            assert started.wait_until(lambda: "ready" in started.printed())
            started.signal(signal.SIGINT, started.pid)
            assert started.wait(30.0) == -signal.SIGINT

    monkeypatch.setattr(program, "import_module", lambda _: SimpleNamespace(main=interrupt))
    monkeypatch.setattr(sys, "argv", ["benchmark", "soak"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        program.main()
    finally:
        signal.signal(signal.SIGINT, before)
