"""A run that a signal or Ctrl-C ends, and what it shows in a terminal."""

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from scripts.benchmarks.session import LIMIT_S
from tests.cli.test_app import PLACES, PLAIN
from tests.warm import WarmSession


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGHUP]
)
def test_a_signal_stops_a_run_after_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    """The signal reaches the whole process group, as from `timeout` or a batch system.

    When a connection is lost, the signal is SIGHUP, which once ended multiprocessing's resource
    tracker.
    """
    given = ["epochs=100000", "eval_every=1", *PLAIN, f"hydra.run.dir={tmp_path / 'run'}"]
    with WarmSession(given, tmp_path / "printed") as session:
        assert session.wait_until(lambda: "epoch 1/" in session.printed()), session.printed()
        os.killpg(session.pid, number)
        assert session.wait() == 128 + number
    check_interrupted(tmp_path / "run")


def check_interrupted(folder: Path) -> None:
    """Check the files of a run that was stopped after a checkpoint."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert os.readlink(folder / "checkpoints" / "last") == f"step-{summary['steps']}"
    assert (folder / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="terminals are others elsewhere")
def test_a_terminal_shows_the_run_and_is_restored_at_the_end(tmp_path: Path) -> None:
    """The user presses Ctrl-C. The message is printed once. At the end, the display is gone."""
    terminal, theirs = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 90, 0, 0))
    arguments = ["epochs=100000", "eval_every=100000", f"hydra.run.dir={tmp_path / 'run'}", *PLAIN]
    process = subprocess.Popen(
        [sys.executable, "-m", "ppll_cli", *arguments],
        env={**os.environ, "PYTHONPATH": PLACES, "NO_COLOR": "1", "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: os.login_tty(theirs),
    )
    os.close(theirs)
    printed = read_until(terminal, "█")  # a part of the live display
    os.write(terminal, b"\x03")
    printed += read_until(terminal, None)
    os.close(terminal)
    assert process.wait(timeout=LIMIT_S) == 128 + signal.SIGINT
    check_interrupted(tmp_path / "run")

    text = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert text.index("█ compute  ▓ auxiliary") > text.index("output: ")
    assert printed.count("stopping after the current batch") == 1
    colours = re.findall(r"\x1b\[[0-9;]*m", printed)
    assert colours  # headers may still be dim
    assert not [code for code in colours if re.search(r"[\[;](3[0-7]|9[0-7])[;m]", code)]
    assert printed.rfind("\x1b[?25h") > printed.rfind("\x1b[?25l")  # the cursor is visible again
    end = printed[printed.rindex("\x1b[2K") :]
    assert "█" not in end
    assert [line for line in end.splitlines() if line.startswith("test accuracy ")]


def read_until(terminal: int, text: str | None) -> str:
    """Read a terminal until the text appears. Without a text, read until the program has ended."""
    seen = b""
    while text is None or text not in seen.decode(errors="replace"):
        assert select.select([terminal], [], [], LIMIT_S)[0], seen.decode(errors="replace")
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # the program has ended
            assert text is None, seen.decode(errors="replace")
            break
    return seen.decode(errors="replace")
