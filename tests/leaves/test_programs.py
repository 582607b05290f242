"""Signals that end a program, also while Python still imports it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ppll_cli
from ppll_cli.errors import Interrupted
from ppll_cli.leaves.programs import MODULES, STOPPING, ending_signals

SOURCE = Path(ppll_cli.__file__).parents[1]


def signalled(command: list[str], number: int, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Start Python; the process sends itself a signal where the program imports `argparse`."""
    places = folder / "places"
    places.mkdir()
    (places / "argparse.py").write_text(f"import os\nos.kill(os.getpid(), {number})\n")
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(places), str(SOURCE)])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("program", "number"),
    [*((each, signal.SIGINT) for each in MODULES), ("ppll-run", signal.SIGTERM)],
)
def test_a_signal_during_the_imports_ends_a_program_with_one_line(
    tmp_path: Path, program: str, number: signal.Signals
) -> None:
    """Ctrl-C in the first 0.3 s showed a traceback."""
    done = signalled(["-m", MODULES[program], "--help"], number, tmp_path)
    assert done.returncode == 128 + number, done.stderr
    assert (done.stdout, done.stderr) == ("", f"{program}: {Interrupted(number)}\n")


def test_a_signal_during_the_imports_ends_a_console_script(tmp_path: Path) -> None:
    script = tmp_path / "ppll-compare"
    script.write_text("from ppll_cli.cli.compare import main\nmain()\n")
    done = signalled([str(script), "--help"], signal.SIGINT, tmp_path)
    assert (done.returncode, done.stderr) == (130, "ppll-compare: stopped by signal 2\n")


def test_a_users_module_named_like_one_of_python_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "signal.py").write_text("raise SystemExit('imported')\n")
    done = signalled(["-m", "ppll_cli", "--version"], signal.SIGINT, tmp_path)
    assert (done.returncode, done.stderr) == (130, "ppll-run: stopped by signal 2\n")


def test_a_program_of_a_user_keeps_its_own_handling_of_signals(tmp_path: Path) -> None:
    script = tmp_path / "theirs.py"
    script.write_text("import ppll_cli\nimport argparse\n")
    done = signalled([str(script), "ppll-run"], signal.SIGINT, tmp_path)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("ignored", [None, signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_signals_ignored_at_the_start_stay_ignored(ignored: signal.Signals | None) -> None:
    """`nohup` starts programs with SIGHUP ignored, a shell script's `&` with SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)
        expected = {*STOPPING} - ({ignored} - {signal.SIGTERM})
        assert {*ending_signals()} == expected
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
