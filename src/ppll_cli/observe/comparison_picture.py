"""A comparison as a picture: speed, accuracy against time, and memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppll_cli.observe.comparison import Comparison, Row
from ppll_cli.observe.figures import new_figure, save
from ppll_cli.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COLOURS = {
    "bp": "#000000",
    "ll": "#E69F00",
    "pp": "#D55E00",
    "gpipe": "#56B4E9",
    "1f1b": "#009E73",
    "ppll": "#0072B2",
}
"""By schedule: of Okabe and Ito's palette, whose colours differ for colour-blind eyes too."""

OTHER = "#CC79A7"
LONGEST = 24
"""Characters of a name; of a longer one the end is shown."""

LINES = ("-", "--", ":", "-.")
MARKERS = "os^Dvx"


def picture(path: Path, comparison: Comparison) -> None:
    """Draw it.

    Raises:
        OSError: The file cannot be written.
    """
    rows = [row for row in comparison.rows if row.run.status != "refused"]
    height = max(3.6, 1.6 + 0.3 * len(rows))
    figure = new_figure(15, height)
    speed, memory, progress = figure.subplots(1, 3)  # runs are in the same place in the first two
    over = any(row.over_bp is not None for row in rows)
    speeds = [row.over_bp if over else row.samples_per_second for row in rows]
    _bars(speed, rows, speeds, "{:.2f}" if over else "{:.0f}")
    speed.set_title(
        "speed, times back-propagation" if over else "speed, samples/s", loc="left", fontsize=10
    )
    if over:
        speed.axvline(1.0, color="#999999", linewidth=0.8, zorder=0)
    _progress(progress, rows, comparison)
    _memory(memory, rows)
    memory.set_yticklabels([])
    save(figure, path, dpi=100)


def label(row: Row) -> str:
    """A run in few words."""
    gpus = "" if row.gpus is None else f" x{row.gpus}"
    name = printable(row.name)
    name = name if len(name) <= LONGEST else f"\N{HORIZONTAL ELLIPSIS}{name[-LONGEST:]}"
    return f"{name}  {printable(row.run.schedule, LONGEST)}{gpus}"


def colour(row: Row) -> str:
    """A schedule's colour."""
    return COLOURS.get(row.run.schedule, OTHER)


def _bars(axes: "Axes", rows: Sequence[Row], values: Sequence[float | None], form: str) -> None:
    """A bar for each run, with its value at the end."""
    if not any(values):
        _nothing(axes)
    largest = max((value or 0.0 for value in values), default=0.0) or 1.0
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        axes.barh(place, value or 0.0, color=colour(row), height=0.7)
        text = "unknown" if value is None else form.format(value)
        _value(axes, (value or 0.0) + 0.01 * largest, place, text)
    axes.set_xlim(0, 1.15 * largest)
    labels = [label(row) for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)
    _settle(axes, len(rows))


def _progress(axes: "Axes", rows: Sequence[Row], comparison: Comparison) -> None:
    seen: dict[str, int] = {}
    drawn: list[tuple[Line2D, str]] = []
    for row in rows:
        points = [(e.seconds, e.value) for e in row.run.evaluations if e.seconds is not None]
        if not points:
            continue
        nth = seen[row.run.schedule] = seen.get(row.run.schedule, -1) + 1
        (curve,) = axes.plot(
            *zip(*points, strict=True),
            color=colour(row),
            linestyle=LINES[nth % len(LINES)],
            marker=MARKERS[nth % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
        )
        drawn.append((curve, label(row)))
    axes.set_title(f"{comparison.metric} against training seconds", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#EEEEEE")
    axes.set_axisbelow(True)
    if not seen:
        _nothing(axes, "no run has recorded times yet")
        return
    if comparison.target is not None:
        axes.axhline(comparison.target, color="#999999", linewidth=0.8, zorder=0)
    axes.set_xlim(left=0)
    curves, labels = zip(*drawn, strict=True)
    legend = axes.legend(curves, labels, loc="upper left", fontsize=8, frameon=False)
    legend.set_bbox_to_anchor((1.0, 1.0))  # beside the panel, where it hides no curve
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula


def _memory(axes: "Axes", rows: Sequence[Row]) -> None:
    """What each stage has at most, one after the other: the whole bar is all devices together."""
    sums = [sum(row.stage_bytes) / 1e6 for row in rows]
    if not any(sums):
        _nothing(axes)
    largest = max(sums, default=0.0) or 1.0
    for place, row in enumerate(rows):
        left = 0.0
        for size in row.stage_bytes:
            width = size / 1e6
            axes.barh(place, width, left=left, color=colour(row), height=0.7, edgecolor="white")
            left += width
        text = "unknown" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
        _value(axes, left + 0.01 * largest, place, text)
    axes.set_xlim(0, 1.15 * largest)
    axes.set_yticks(range(len(rows)))
    axes.set_title("peak MB of the stages, and the largest", loc="left", fontsize=10)
    _settle(axes, len(rows))


def _value(axes: "Axes", x: float, y: float, text: str) -> None:
    """A number that a line behind it does not cross out."""
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.text(x, y, text, va="center", fontsize=8, bbox=behind)


def _settle(axes: "Axes", rows: int) -> None:
    axes.set_ylim(max(rows, 4) - 0.4, -0.6)  # few bars are not broad
    axes.spines[["top", "right"]].set_visible(False)


def _nothing(axes: "Axes", why: str = "no data") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color="#666666")
