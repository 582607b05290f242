"""The picture of a run on a terminal: reading the terminal's output, and drawing a frame."""

import io
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ppll_cli.observe.live import View
from scripts import live_picture
from scripts.live_picture import Screen, as_svg, chosen, progress, record
from tests.observe.test_live import FACTS, NOW

WIDTH = 100


def shown(steps: list[int]) -> str:
    """Return what the program writes to a terminal: a line, then a display that is redrawn."""
    file = io.StringIO()
    console = Console(file=file, width=WIDTH, force_terminal=True, color_system="standard")
    console.print("settings: the defaults")
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for step in steps:
            console.print(f"an evaluation before step {step}")
            live.update(View(FACTS, replace(NOW, step=step), "train loss 0.5"), refresh=True)
    console.print("the end")
    return file.getvalue().replace("\n", "\r\n")


def test_frames_are_the_screens_that_the_terminal_showed() -> None:
    screen = Screen()
    for part in re.split(r"(?<=\x1b\[2K)", shown([50, 100, 150])):  # feed the output in pieces
        screen.feed(part)
    frames = [Text.from_ansi("\n".join(lines)).plain.splitlines() for lines in screen.frames]
    (frame,) = [lines for lines in frames if any("step 100/200" in line for line in lines)][:1]
    evaluations = [f"an evaluation before step {step}" for step in (50, 100)]
    assert frame[:3] == ["settings: the defaults", *evaluations]
    assert frame[3].startswith("epoch 6/10")
    assert frame[4] == "train loss 0.5"
    assert frame[-1].startswith("█ compute")
    assert [progress(lines) for lines in screen.frames] == sorted(
        progress(lines) or 0.0 for lines in screen.frames
    )


def test_the_frame_nearest_to_the_given_progress_is_drawn() -> None:
    screen = Screen()
    screen.feed(shown([50, 100, 150]))
    assert progress(chosen(screen.frames, 0.6)) == 0.5
    assert progress(chosen(screen.frames, 0.9)) == 0.75
    assert progress(["step 3/4", "no display"]) is None


def test_the_picture_needs_no_other_files() -> None:
    """It has its own background, and uses no font or other file from elsewhere."""
    screen = Screen()
    screen.feed(shown([50]))
    svg = as_svg(screen.frames[-1], WIDTH, "ppll-run seed=1")
    tree = ElementTree.fromstring(svg)
    texts = "".join(each.text or "" for each in tree.iter() if each.tag.endswith("text"))
    assert "samples/s" in texts
    assert "blocks.1" in texts
    assert "@font-face" not in svg
    assert not re.findall(r"url\((?!#)", svg)
    assert not re.findall(r"(?:href|src)\s*[=:]", svg)
    rectangles = [each for each in tree.iter() if each.tag.endswith("rect")]
    assert any(each.get("fill", "none") != "none" for each in rectangles)


def test_a_program_runs_on_a_terminal_of_the_given_width() -> None:
    program = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns)"
    status, screen, written = record([sys.executable, "-c", program], 77)
    assert (status, written.strip(), screen.frames) == (0, "True 77", [])


def test_a_run_that_fails_leaves_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live_picture, "record", lambda *_: (2, Screen(), "gpus=0: none\r\n"))
    assert live_picture.main(["--output", str(tmp_path / "live.svg"), "gpus=0"]) == 1
    assert "gpus=0: none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_program_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_picture, "LIMIT_S", 0.1)
    monkeypatch.setattr(live_picture, "ENDING_S", 0.1)
    status, _, _ = record([sys.executable, "-c", "import signal; signal.pause()"], WIDTH)
    assert status == -signal.SIGKILL
