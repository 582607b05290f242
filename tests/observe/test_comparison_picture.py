"""Comparisons as pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from ppll_cli.observe.comparison import compare
from ppll_cli.observe.comparison_picture import COLOURS, picture
from tests.observe.test_comparison import make
from tests.observe.test_runs import write


def pixels(image: Any, colour: str) -> int:
    return int((np.abs(image - np.array(to_rgb(colour))).max(axis=2) < 0.02).sum())


def test_a_bar_is_as_long_as_its_run_is_fast(tmp_path: Path) -> None:
    """Memory and curves are left out: speed is the only thing drawn in the schedules' colours."""
    make(tmp_path / "0", "bp", 100.0, gpus=1, stages=[])
    make(tmp_path / "1", "ppll", 150.0, stages=[])
    make(tmp_path / "2", "ll", 50.0, gpus=1, stages=[])
    picture(tmp_path / "comparison.png", compare([tmp_path]))
    image = imread(tmp_path / "comparison.png")[:, :, :3]
    ppll, ll = (pixels(image, COLOURS[name]) for name in ("ppll", "ll"))
    assert ppll == pytest.approx(3 * ll, rel=0.05)
    assert ll > 1000


def test_one_run_and_a_dozen_are_drawn(tmp_path: Path) -> None:
    make(tmp_path / "one" / "0", "ppll")
    for number in range(12):
        make(tmp_path / "dozen" / str(number), "ppll", accuracies=(0.5, 0.6))
    heights = []
    for name in ("one", "dozen"):
        picture(tmp_path / name / "comparison.png", compare([tmp_path / name]))
        heights.append(imread(tmp_path / name / "comparison.png").shape[0])
    assert heights[0] < heights[1]


def test_what_never_ran_has_no_bar(tmp_path: Path) -> None:
    """And what ran without coming to a speed has the place of one."""
    folders = [tmp_path / "ran", tmp_path / "refused"]
    for folder in folders:
        make(folder / "0", "bp", gpus=1)
        make(folder / "1", "gpipe", None, status="failed", pipeline={}, stages=[], test=None)
    write(folders[1], refused='{"job": 4, "overrides": ["gpus=0"], "error": "gpus=0: none"}\n')
    for folder in folders:
        picture(folder / "comparison.png", compare([folder]))
    ran, refused = (imread(folder / "comparison.png") for folder in folders)
    assert (ran == refused).all()


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    """What stands between two dollars would be one, and most are wrong ones."""
    make(tmp_path / "_$x_{$", "ppll", accuracies=(0.5,))
    picture(tmp_path / "comparison.png", compare([tmp_path]))
    assert (tmp_path / "comparison.png").stat().st_size > 0
