"""Runs the program in this process with arguments that it refuses."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra

from ppll_cli.cli import app
from ppll_cli.launch import run as running
from ppll_cli.leaves import forkserver
from tests.conftest import pretend_devices
from tests.program import restored

Refusal = Callable[[Sequence[str]], str]
Refused = Callable[..., None]


def rows(table: str) -> list[list[str]]:
    """Return the arguments of `refused` from a table, one case per line.

    A line is ARGUMENTS | WORDS, or ARGUMENTS | START | WORDS.
    """
    lines = filter(None, table.splitlines())
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return [[arguments, words, *start] for arguments, *start, words in cells]


@pytest.fixture
def refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refusal:
    """Return a function that runs the program, and returns its error message.

    The fixture replaces the start of processes, so that only the check of the arguments runs.
    """
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the program sets it too; undo it after the test
    monkeypatch.setattr(sys, "path", [*sys.path])
    pretend_devices(monkeypatch, 0)
    monkeypatch.setattr(forkserver, "start", lambda: None)
    monkeypatch.setattr(forkserver, "stop", lambda: None)
    monkeypatch.setattr(running, "launch", lambda *_: pytest.fail("workers were started"))
    # Hydra would compose the configuration once more, only to find out whether this is a sweep.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)

    def refusal(arguments: Sequence[str]) -> str:
        before = files_here()
        monkeypatch.setattr(sys, "argv", ["ppll-run", *arguments])
        with restored(), pytest.raises(SystemExit) as left:
            app.main()
        said = capsys.readouterr()
        assert left.value.code == 2, said.err
        assert not said.out or "--multirun" in arguments
        assert files_here() == before, "something was left behind"
        (line,) = said.err.splitlines()
        assert line.startswith("ppll-run: ")
        return line.removeprefix("ppll-run: ")

    return refusal


@pytest.fixture
def refused(refusal: Refusal) -> Refused:
    """Return a function that runs the program, and checks its error message.

    The message begins with `start`, by default the last argument, and has `words` in its rest.
    """

    def refused(arguments: str, words: str, start: str | None = None) -> None:
        given = arguments.split()
        if start is None:
            start = given[-1].lstrip("+")
        line = refusal(given)
        assert line.startswith(start)
        assert ": " in line
        assert words in line.removeprefix(start)

    return refused


def files_here() -> list[Path]:
    """Return what is in the working directory, without what Python compiles there."""
    return sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)


def write(name: str, content: str = "") -> None:
    """Write a file, and create its folder if needed."""
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(content)
