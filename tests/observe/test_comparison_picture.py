"""Comparisons as pictures."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from ppll_cli.observe import comparison_picture
from ppll_cli.observe.comparison import compare
from ppll_cli.observe.comparison_picture import (
    COLOURS,
    MOST_CURVES,
    labels,
    picture,
    shared,
    with_unit,
)
from tests.observe.drawn import kept_figures
from tests.observe.test_comparison import make
from tests.observe.test_runs import write


def pixels(image: Any, colour: str) -> int:
    return int((np.abs(image - np.array(to_rgb(colour))).max(axis=2) < 0.02).sum())


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure of a comparison, as it is saved."""
    made = kept_figures(monkeypatch, comparison_picture)
    picture(folder / "comparison.png", compare([folder]))
    return made[0]


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


def test_a_label_says_what_a_run_is_and_not_where_it_lies(tmp_path: Path) -> None:
    long = tmp_path / "2026-11-28"
    make(long / "04-32-10", "bp", gpus=1, config={"replicas": 1})
    make(long / "04-33-10", "ppll", gpus=4, config={"replicas": 2}, choices={"local": "predsim"})
    make(long / "04-34-10", "ppll", config={"replicas": 1}, choices={"fba": "on"}, status="failed")
    assert labels(compare([tmp_path]).rows) == [
        "bp gpus=1 local=greedy fba=None replicas=1",
        "ppll gpus=4 local=predsim fba=None replicas=2",
        "ppll gpus=2 local=greedy fba=on replicas=1 (failed)",
    ]


def test_a_sweeps_numbers_stand_before_the_labels(tmp_path: Path) -> None:
    make(tmp_path / "0", "ll", gpus=1)
    make(tmp_path / "1", "ppll", gpus=1, config={"epochs": 3})
    make(tmp_path / "2", "ppll", gpus=1)
    assert labels(compare([tmp_path]).rows) == [
        "0: ll epochs=2",
        "1: ppll epochs=3 *",
        "2: ppll epochs=2",
    ]


def test_runs_with_the_same_settings_are_told_apart_by_their_whole_names(tmp_path: Path) -> None:
    names = ["a" * 40 + "/0", "a" * 40 + "/1"]
    for name in names:
        make(tmp_path / name, "ppll")
    assert labels(compare([tmp_path]).rows) == [f"ppll in {name}" for name in names]


def test_what_all_runs_share_stands_above(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll")
    make(tmp_path / "1", "gpipe", config={"batch_size": 32})
    rows = compare([tmp_path]).rows
    assert shared(rows) == "2 runs: model=vit data=digits epochs=2 device=cpu gpus=2"
    assert (
        shared(rows[:1]) == "1 run: model=vit data=digits batch_size=64 epochs=2 device=cpu gpus=2"
    )


def test_axes_have_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_unit("test psnr") == "test psnr (dB)"
    assert with_unit("val accuracy") == "val accuracy (0 to 1)"
    assert with_unit("test distance") == "test distance"
    make(tmp_path / "0", "bp", gpus=1, accuracies=(0.5, 0.6))
    make(tmp_path / "1", "ppll", accuracies=(0.5, 0.6), config={"threads": 2}, threads=2)
    speed, memory, best, progress = drawn(tmp_path, monkeypatch).axes
    assert speed.get_xlabel() == "times bp's (samples/s in brackets)"
    assert memory.get_xlabel() == "MB of all stages, side by side"
    assert best.get_xlabel() == progress.get_ylabel() == "test accuracy (0 to 1)"
    assert progress.get_xlabel() == "seconds of training, evaluation included"
    texts = [text.get_text() for text in speed.texts]
    assert texts == ["1.00 (100 /s)", "1.00 (100 /s)"]


@pytest.mark.parametrize("count", [4, 40])
def test_labels_do_not_cover_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Nor the legend, nor the panels; few curves have names, many the number of their runs."""
    for number in range(count):
        config = {"local": {"modules": number}, "seed": number, "optim": {"lr": 0.1 / (1 + number)}}
        make(tmp_path / str(number), "ppll", accuracies=(0.5, 0.6), config=config)
    figure = drawn(tmp_path, monkeypatch)
    (legend,) = figure.legends
    renderer = figure.canvas.get_renderer()
    ticks = figure.axes[0].get_yticklabels()
    boxes = [text.get_window_extent(renderer) for text in ticks]
    boxes += [legend.get_window_extent(renderer), figure._suptitle.get_window_extent(renderer)]
    boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
    assert not [
        (one, other)
        for nth, one in enumerate(boxes)
        for other in boxes[:nth]
        if one.shrunk(0.98, 0.9).overlaps(other.shrunk(0.98, 0.9))
    ]
    assert not [box.bounds for box in boxes if box.x0 < 0 or box.y0 < 0]
    assert [tick.get_text().replace("\n", " ") for tick in ticks] == labels(
        compare([tmp_path]).rows
    )
    entries = [text.get_text() for text in legend.get_texts()]
    if count <= MOST_CURVES:
        assert entries[:count] == labels(compare([tmp_path]).rows)
    else:
        assert entries == ["ppll (40 runs)"]


def test_a_users_dark_style_changes_nothing(tmp_path: Path) -> None:
    """The ground is white and opaque: dark text is read on every page."""
    make(tmp_path / "0", "bp", gpus=1)
    picture(tmp_path / "light.png", compare([tmp_path]))
    dark: dict[Any, Any] = {
        "figure.facecolor": "black",
        "text.color": "white",
        "savefig.transparent": True,
    }
    with matplotlib.rc_context(dark):
        picture(tmp_path / "dark.png", compare([tmp_path]))
        assert matplotlib.rcParams["text.color"] == "white"
    image = imread(tmp_path / "dark.png")
    assert (image == imread(tmp_path / "light.png")).all()
    assert (image[0, 0] == 1).all()
    assert (image[:, :, 3:] == 1).all()


def test_one_run_and_a_dozen_are_drawn(tmp_path: Path) -> None:
    make(tmp_path / "one" / "0", "ppll")
    for number in range(12):
        make(tmp_path / "dozen" / str(number), "ppll", accuracies=(0.5, 0.6))
    heights = []
    for name in ("one", "dozen"):
        picture(tmp_path / name / "comparison.png", compare([tmp_path / name]))
        heights.append(imread(tmp_path / name / "comparison.png").shape[0])
    assert heights[0] < heights[1]


def test_what_never_ran_has_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted above. What ran without coming to a speed has the place of a bar."""
    make(tmp_path / "0", "bp", gpus=1)
    make(tmp_path / "1", "gpipe", None, status="failed", pipeline={}, stages=[], test=None)
    write(tmp_path, refused='{"job": 4, "overrides": ["gpus=0"], "error": "gpus=0: none"}\n')
    figure = drawn(tmp_path, monkeypatch)
    speed = figure.axes[0]
    assert [tick.get_text() for tick in speed.get_yticklabels()] == [
        "0: bp gpus=1",
        "1: gpipe gpus=2 (failed)",
    ]
    assert speed.texts[1].get_text() == "unknown"
    assert figure._suptitle.get_text().splitlines()[1:] == ["1 refused run not drawn"]


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    """What stands between two dollars would be one, and most are wrong ones."""
    make(tmp_path / "_$x_{$", "ppll", accuracies=(0.5,))
    picture(tmp_path / "comparison.png", compare([tmp_path]))
    assert (tmp_path / "comparison.png").stat().st_size > 0
