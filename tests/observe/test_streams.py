"""Standard streams that break, in other processes and in this one."""

import errno
import io
import logging
import subprocess
import sys
from typing import Any

import pytest

from ppll_cli.observe.streams import Shown, guard, output_failure, tell_failures

SCRIPT = """
import sys
from ppll_cli.observe import streams
streams.guard()
streams.guard()
for number in range(20_000):
    print("a line that nobody reads", number)
print("an error", file=sys.stderr)
print("\\u2588 r\\u00e9sum\\u00e9")
"""


def run(redirection: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "redirection",
    ["> >(true)", ">/dev/full", ">&-", "2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full"],
)
def test_a_broken_stream_does_not_end_the_program(redirection: str) -> None:
    """Python itself would end with status 120, and print that an exception was ignored."""
    done = run(redirection)
    assert done.returncode == 0
    assert done.stderr == ("" if "2>" in redirection else "an error\n")


def test_unencodable_characters_are_printed_as_escapes() -> None:
    done = run("", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "an error\n")
    assert done.stdout.splitlines()[-1] == r"\u2588 r\xe9sum\xe9"


class Broken(io.StringIO):
    """A stream whose methods raise a given error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.tries = error, 0

    def write(self, _: str) -> int:
        self.tries += 1
        raise self.error


def test_after_a_failure_nothing_more_is_written_and_it_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    broken = Broken(OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(sys, "stdout", Shown(broken, "stdout"))
    sys.stdout.write("one\n")
    sys.stdout.write("two\n")
    tell_failures()
    assert broken.tries == 1
    assert caplog.messages == ["nothing more is written to stdout: Input/output error"]
    assert output_failure() == "Input/output error"


def test_a_slow_reader_does_not_count_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Broken(BlockingIOError(errno.EAGAIN, "try again"))
    shown = Shown(broken, "stdout")
    shown.write("one")
    shown.write("two")
    assert (broken.tries, shown.failure) == (2, None)


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "broken"), ValueError("closed")])
def test_a_closed_pipe_is_not_a_failure(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Shown(Broken(error), "stdout"))
    sys.stdout.write("one\n")
    assert output_failure() is None


def test_a_closed_stream_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: Any = {"stdout": None, "stderr": io.StringIO()}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    guard()
    sys.stdout.write("nobody reads this")
    assert not sys.stdout.isatty()
    assert isinstance(sys.stderr, Shown)
    sys.stdout.close()
