"""`scripts/live_picture [options] [KEY=VALUE ...]`: draw the terminal during a run of ppll-run.

The picture shows one moment of a real run. The SVG loads nothing from other files or from the
network.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

LIMIT_S, ENDING_S = 600.0, 30.0
"""Seconds for which a program's output is read, and seconds that it then has to end by itself."""

ROWS = 40
CONTROL = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\r|\n")
STEP = re.compile(r"step (\d+)/(\d+)")
FONT = re.compile(r"@font-face \{[^}]*\}\s*")


class Screen:
    """Emulates a terminal, as far as a live display needs it.

    `frames` has the lines of each complete display, just before it is redrawn.
    """

    def __init__(self) -> None:
        self.frames: list[list[str]] = []
        self._lines = [""]
        self._row = 0

    def feed(self, text: str) -> None:
        """Process the text and the control sequences that a program wrote."""
        end = 0
        for found in CONTROL.finditer(text):
            self._lines[self._row] += text[end : found.start()]
            end = found.end()
            self._obey(found)
        self._lines[self._row] += text[end:]

    def _obey(self, found: re.Match[str]) -> None:
        numbers, command = found.groups()
        if found[0] == "\n":
            self._row += 1
            if self._row == len(self._lines):
                self._lines.append("")
        elif command == "A":
            self._row = max(0, self._row - int(numbers or 1))
        elif command == "K":
            if progress(self._lines) is not None:
                self.frames.append(list(self._lines))
            self._lines[self._row] = ""
        elif command == "m":
            self._lines[self._row] += found[0]


def progress(lines: Sequence[str]) -> float | None:
    """Return the fraction of steps done, from 0 to 1, that a live display shows.

    Return None if the display is incomplete.
    """
    text = Text.from_ansi("\n".join(lines)).plain
    found = STEP.findall(text)
    complete = "█ compute" in text and "samples/s" in text and "not known yet" not in text
    return int(found[-1][0]) / int(found[-1][1]) if found and complete else None


def record(command: Sequence[str], columns: int) -> tuple[int, Screen, str]:
    """Run a command on a pseudo-terminal; return its exit status, the screen and its output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as program:
        os.close(theirs)
        written = _read(ours, time.monotonic() + LIMIT_S)
        try:
            status = program.wait(ENDING_S)
        except subprocess.TimeoutExpired:  # it has reached the limit, or hangs at its end
            program.kill()
            status = program.wait()
        os.close(ours)
    screen = Screen()
    screen.feed(written)
    return status, screen, written


def _read(ours: int, end_s: float) -> str:
    parts: list[bytes] = []
    while (left_s := end_s - time.monotonic()) > 0:
        if not select.select([ours], [], [], left_s)[0]:
            break
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the program has closed the terminal
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


def chosen(frames: Sequence[Sequence[str]], at: float) -> Sequence[str]:
    """Return the frame whose fraction of steps done is nearest to `at`."""
    return min(frames, key=lambda lines: abs((progress(lines) or 0.0) - at))


def as_svg(lines: Sequence[str], columns: int, title: str) -> str:
    """Return an SVG of a terminal on an opaque dark background, without fonts to download."""
    console = Console(
        record=True, width=columns, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    console.print(Text.from_ansi("\n".join(lines).rstrip()), soft_wrap=True)
    svg = console.export_svg(title=title, unique_id="live")
    return FONT.sub("", svg)


def main(arguments: Sequence[str]) -> int:
    """Write the picture; return 0, or 1 if the run failed or showed no display."""
    parser = argparse.ArgumentParser(prog="scripts/live_picture", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/live.svg"))
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument(
        "--at", type=float, default=0.6, help="fraction of steps done in the picture"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "ppll_cli", *options.overrides]
    status, screen, written = record(command, options.columns)
    if status or not screen.frames:
        sys.stderr.write(
            f"{written}\nthe run ended with status {status} and showed {len(screen.frames)} "
            "complete live displays\n"
        )
        return 1
    title = " ".join(["ppll-run", *options.overrides])
    svg = as_svg(chosen(screen.frames, options.at), options.columns, title)
    options.output.write_text(svg)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
