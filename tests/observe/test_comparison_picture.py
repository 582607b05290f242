"""Pictures of comparisons."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from ppll_cli.observe import comparison_picture
from ppll_cli.observe.comparison import compare
from ppll_cli.observe.comparison_labels import COLOURS, labels
from ppll_cli.observe.comparison_picture import MOST_CURVES, picture
from tests.observe.compared_runs import make, write
from tests.observe.drawn import kept_figures


def pixels(image: Any, colour: str) -> int:
    return int((np.abs(image - np.array(to_rgb(colour))).max(axis=2) < 0.02).sum())


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the figure of a comparison, as it was saved."""
    made = kept_figures(monkeypatch, comparison_picture)
    picture(folder / "comparison.png", compare([folder]))
    return made[0]


def test_the_length_of_a_bar_is_the_speed_of_its_run(tmp_path: Path) -> None:
    """There are no memory and no curves, so above the legend only the bars have these colours."""
    make(tmp_path / "0", "bp", 100.0, gpus=1, stages=[])
    make(tmp_path / "1", "ppll", 150.0, stages=[])
    make(tmp_path / "2", "ll", 50.0, gpus=1, stages=[])
    picture(tmp_path / "comparison.png", compare([tmp_path]))
    image = imread(tmp_path / "comparison.png")[:, :, :3]
    image = image[: len(image) // 2]
    ppll, ll = (pixels(image, COLOURS[name]) for name in ("ppll", "ll"))
    assert ppll == pytest.approx(3 * ll, rel=0.05)
    assert ll > 1000


def test_axes_have_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "0", "bp", gpus=1, accuracies=(0.5, 0.6))
    make(tmp_path / "1", "ppll", accuracies=(0.5, 0.6), config={"threads": 2}, threads=2)
    speed, memory, best, progress = drawn(tmp_path, monkeypatch).axes
    assert speed.get_xlabel() == "times bp's 100 samples/s"
    assert memory.get_xlabel() == "MB of all stages, side by side"
    assert best.get_xlabel() == progress.get_ylabel() == "test accuracy (0 to 1)"
    assert progress.get_xlabel() == "seconds of training, evaluation included"
    texts = [text.get_text() for text in speed.texts]
    assert texts == ["1.00", "1.00"]


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_labels_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Labels do not overlap the legend or the panels either.

    Few curves are named one by one. If there are many, the legend names schedules and methods.
    """
    for number in range(count):
        config = {"local": {"modules": number}, "optim": {"lr": 0.1 / (1 + number)}}
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
        compare([tmp_path]).groups
    )
    entries = [text.get_text() for text in legend.get_texts()]
    if count <= MOST_CURVES:
        assert entries[:count] == labels(compare([tmp_path]).groups)
    else:
        assert entries == ["schedule ppll", "0.6, which all completed runs reached"]


@pytest.fixture(scope="module")
def figure_of_seeds(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a figure of groups of seeds: back-propagation, and ppll with three local methods."""
    folder = tmp_path_factory.mktemp("seeds")
    number = 0
    for schedule, method in (("bp", "greedy"), ("ppll", "greedy"), ("ppll", "dgl"), ("ppll", "m")):
        for seed in range(3):
            make(
                folder / str(number),
                schedule,
                100.0 + 10 * len(method) + seed,
                gpus=1 if schedule == "bp" else 2,
                accuracies=(0.5, 0.6 + 0.01 * seed),
                config={"seed": seed, "local": {"_target_": "ppll_cli.L", "modules": None}},
                choices={"local": method},
            )
            number += 1
    with pytest.MonkeyPatch.context() as monkeypatch:
        return drawn(folder, monkeypatch)


def test_labels_of_ticks_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        schedule, seed = ("bp", "ppll")[number // 3], number % 3
        make(
            tmp_path / str(number),
            schedule,
            gpus=1 if schedule == "bp" else 2,
            accuracies=(0.5, 0.61 + 0.004 * seed),
            config={"seed": seed},
        )
    for axes in drawn(tmp_path, monkeypatch).axes[:3]:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert len(boxes) >= 2
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_a_group_has_a_bar_with_a_deviation_and_a_point_for_each_run(figure_of_seeds: Any) -> None:
    speed, _, best, progress = figure_of_seeds.axes
    assert len(speed.patches) == len(speed.containers) / 2 == 4
    widths = [bar.get_width() for bar in speed.patches]
    assert widths == pytest.approx([1.0, 1.0, 131 / 161, 111 / 161])
    points = [line.get_xdata() for line in speed.lines if line.get_markersize() < 3]
    assert [len(each) for each in points if len(each) == 3] == [3] * 4
    assert speed.texts[0].get_text() == "1.00 ± 0.01"
    assert best.texts[0].get_text() == "0.6100 ± 0.0100"
    assert speed.texts[1].get_text() == "1.00 ± 0.01 ~"
    assert speed.texts[2].get_text() == "0.81 ± 0.01"
    assert len([line for line in progress.lines if len(line.get_xdata()) == 2]) == 5


def test_a_schedule_has_a_colour_and_a_method_a_hatch(figure_of_seeds: Any) -> None:
    speed = figure_of_seeds.axes[0]
    colours = [bar.get_facecolor()[:3] for bar in speed.patches]
    assert colours == [to_rgb(COLOURS[name]) for name in ("bp", "ppll", "ppll", "ppll")]
    hatches = [bar.get_hatch() or "" for bar in speed.patches]
    assert hatches[:2] == ["", ""]
    assert len({*hatches[1:]}) == 3


def test_numbers_do_not_overlap_bars_and_points(figure_of_seeds: Any) -> None:
    renderer = figure_of_seeds.canvas.get_renderer()
    for axes in figure_of_seeds.axes[:3]:
        texts = [text.get_window_extent(renderer) for text in axes.texts]
        marks = [bar.get_window_extent(renderer) for bar in axes.patches]
        marks += [
            line.get_window_extent(renderer) for line in axes.lines if len(line.get_xdata()) > 2
        ]
        assert texts
        assert not [1 for text in texts for mark in marks if text.overlaps(mark)]


def test_a_users_dark_style_changes_nothing(tmp_path: Path) -> None:
    """The background is white and opaque, so that dark text is readable on every page."""
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


def test_a_picture_of_more_runs_is_higher(tmp_path: Path) -> None:
    make(tmp_path / "one" / "0", "ppll")
    for number in range(12):
        make(tmp_path / "dozen" / str(number), "ppll", accuracies=(0.5, 0.6))
    heights = []
    for name in ("one", "dozen"):
        picture(tmp_path / name / "comparison.png", compare([tmp_path / name]))
        heights.append(imread(tmp_path / name / "comparison.png").shape[0])
    assert heights[0] < heights[1]


def test_a_run_without_a_speed_has_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused job is only counted above the panels.

    A run that failed without a speed keeps its place.
    """
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


def test_a_name_with_dollar_signs_is_not_drawn_as_a_formula(tmp_path: Path) -> None:
    """Text between two dollar signs is a formula for matplotlib, and usually a wrong one."""
    make(tmp_path / "_$x_{$", "ppll", accuracies=(0.5,))
    picture(tmp_path / "comparison.png", compare([tmp_path]))
    assert (tmp_path / "comparison.png").stat().st_size > 0
