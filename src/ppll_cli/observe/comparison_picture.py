"""A comparison as a picture: speed, memory and metric of each run, and the metric against time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import Comparison, Row
from ppll_cli.observe.conditions import conditions
from ppll_cli.observe.figures import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COLOURS = {
    "bp": "#000000",
    "ll": "#E69F00",
    "pp": "#D55E00",
    "gpipe": "#56B4E9",
    "1f1b": "#009E73",
    "interleaved": "#CC79A7",
    "zb_h1": "#F0E442",
    "ppll": "#0072B2",
}
"""By schedule: of Okabe and Ito's palette, whose colours differ for colour-blind eyes too."""

OTHER = "#999999"
"""Of a user's own schedule."""

SHORT_NAME = 8
"""Characters of a run's name that stands before its label, so that it is found in the tables."""

LONGEST = 240
"""Characters of a label; a longer one is shortened in its middle."""

LABEL_WIDTH = 36
"""Characters of a line of a label."""

HEAD_WIDTH = 115
"""Characters of a line above the panels, and of one in the legend."""

MOST_CURVES = 8
"""With more curves than this the legend names the schedules alone."""

LINES = ("-", "--", ":", "-.")
MARKERS = "os^Dvx"

LINE_INCHES, GAP_INCHES, BAR_INCHES = 0.145, 0.1, 0.17
CURVES_INCHES = 2.6

UNITS = {"psnr": "dB", "accuracy": "0 to 1", "ap": "0 to 1"}
"""By metric; those of other tasks have none."""


def picture(path: Path, comparison: Comparison) -> None:
    """Draw it.

    Raises:
        OSError: The file cannot be written.
    """
    rows = [row for row in comparison.rows if row.run.status != "refused"]
    names = labels(rows)
    wrapped = [fill(name, LABEL_WIDTH) for name in names]
    places, end = _places(wrapped)
    head = "\n".join([shared(rows), *(fill(note, HEAD_WIDTH) for note in _notes(comparison))])
    curves = sum(bool(_points(row)) for row in rows)
    lines = head.count("\n") + (curves + 1 if curves <= MOST_CURVES else 1)
    height = end + CURVES_INCHES + LINE_INCHES * lines + 1.9
    with figure(path, height) as made:
        made.suptitle(head, fontsize=9, x=0.01, ha="left", parse_math=False)
        grid = made.add_gridspec(2, 3, height_ratios=[end, CURVES_INCHES])
        speed, memory, best = (made.add_subplot(grid[0, column]) for column in range(3))
        _speed(speed, rows, places)
        _memory(memory, rows, places)
        _best(best, rows, places, comparison.metric)
        for axes in (speed, memory, best):
            axes.set_ylim(end, 0)
            axes.set_yticks(places, wrapped if axes is speed else [], parse_math=False)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        _progress(made.add_subplot(grid[1, :]), rows, names, comparison)


def labels(rows: Sequence[Row]) -> list[str]:
    """What each run is: its schedule, and the settings in which the runs differ.

    A short name, as a sweep gives one, stands before that. A long one is shown where runs have the
    same settings, and then as a whole.
    """
    several = len({row.gpus for row in rows}) > 1
    told = [_label(row, several) for row in rows]
    count = Counter(told)
    return [_named(row, text, count[text] > 1) for row, text in zip(rows, told, strict=True)]


def _label(row: Row, with_gpus: bool) -> str:
    parts = [row.run.schedule]
    if with_gpus and row.gpus is not None:
        parts.append(f"gpus={row.gpus}")
    if row.differs:
        parts.append(row.differs)
    return printable(" ".join(parts), LONGEST)


def _named(row: Row, text: str, ambiguous: bool) -> str:
    name = printable(row.run.name)
    short = len(name) <= SHORT_NAME
    status = "" if row.run.status == "completed" else f" ({row.run.status})"
    found = f"{name}: {text}" if short else text
    whole = f" in {name}" if ambiguous and not short else ""
    return f"{found}{whole}{status}{' *' if row.unequal else ''}"


def shared(rows: Sequence[Row]) -> str:
    """What all runs have in common."""
    known = [conditions(row.run) for row in rows]
    same = {
        key: str(values.pop())
        for key in ("model", "data", "batch_size", "epochs", "device")
        if len(values := {each.get(key) for each in known}) == 1 and None not in values
    }
    gpus = {row.gpus for row in rows}
    if len(gpus) == 1 and None not in gpus:
        same["gpus"] = str(gpus.pop())
    runs = f"{len(rows)} run{'' if len(rows) == 1 else 's'}"
    settings = printable(" ".join(f"{key}={value}" for key, value in same.items()), LONGEST)
    return fill(f"{runs}: {settings}" if settings else runs, HEAD_WIDTH)


def colour(row: Row) -> str:
    """A schedule's colour."""
    return COLOURS.get(row.run.schedule, OTHER)


def with_unit(metric: str) -> str:
    """A metric, after its split, with its unit or its range where that is known."""
    unit = UNITS.get(metric.rpartition(" ")[2])
    return f"{metric} ({unit})" if unit else metric


def _notes(comparison: Comparison) -> Iterator[str]:
    """What the picture leaves out, or cannot say itself."""
    if any(row.unequal for row in comparison.rows):
        yield "* is not comparable to most runs, comparison.md says why"
    if any(note.startswith("x bp flatters") for note in comparison.notes):
        yield "some runs have more threads than back-propagation, see comparison.md"
    refused = sum(row.run.status == "refused" for row in comparison.rows)
    if refused:
        yield f"{refused} refused run{'' if refused == 1 else 's'} not drawn"


def _places(wrapped: Sequence[str]) -> tuple[list[float], float]:
    """The middle of each run's lines, and where the last one ends, in inches from the top."""
    places, end = [], GAP_INCHES / 2
    for text in wrapped:
        high = LINE_INCHES * (1 + text.count("\n")) + GAP_INCHES
        places.append(end + high / 2)
        end += high
    return places, max(end, 4 * (LINE_INCHES + GAP_INCHES))  # few bars are not broad


def _speed(axes: "Axes", rows: Sequence[Row], places: Sequence[float]) -> None:
    """A bar for each run: over back-propagation's where that is known of any."""
    over = any(row.over_bp is not None for row in rows)
    values = [row.over_bp if over else row.samples_per_second for row in rows]
    _title(axes, "speed", "times bp's (samples/s in brackets)" if over else "samples/s")
    if not any(values):
        _nothing(axes)
        return
    largest = max(value or 0.0 for value in values)
    for place, row, value in zip(places, rows, values, strict=True):
        axes.barh(place, value or 0.0, color=colour(row), height=BAR_INCHES)
        rate = row.samples_per_second
        text = "unknown" if value is None else f"{value:.2f}" if over else f"{value:.0f}"
        if over and rate is not None:
            text += f" ({rate:.0f} /s)"
        _value(axes, (value or 0.0) + 0.02 * largest, place, text)
    axes.set_xlim(0, (1.65 if over else 1.3) * largest)
    if over:
        axes.axvline(1.0, color="#999999", linewidth=0.8, zorder=0)


def _memory(axes: "Axes", rows: Sequence[Row], places: Sequence[float]) -> None:
    """What each stage has at most, one after the other: the whole bar is all devices together."""
    _title(axes, "peak memory (largest stage)", "MB of all stages, side by side")
    sums = [sum(row.stage_bytes) / 1e6 for row in rows]
    if not any(sums):
        _nothing(axes)
        return
    largest = max(sums)
    for place, row in zip(places, rows, strict=True):
        left = 0.0
        for size in row.stage_bytes:
            width = size / 1e6
            axes.barh(
                place, width, left=left, color=colour(row), height=BAR_INCHES, edgecolor="white"
            )
            left += width
        text = "unknown" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f} MB"
        _value(axes, left + 0.02 * largest, place, text)
    axes.set_xlim(0, 1.45 * largest)


def _best(axes: "Axes", rows: Sequence[Row], places: Sequence[float], metric: str) -> None:
    """A point for each run: the differences are small, so the axis does not begin at 0."""
    _title(axes, f"best {metric}", with_unit(metric))
    known = [row.best for row in rows if row.best is not None]
    if not known:
        _nothing(axes)
        return
    spread = max(known) - min(known) or abs(max(known)) or 1.0
    axes.set_xlim(min(known) - 0.1 * spread, max(known) + 0.5 * spread)
    axes.grid(visible=True, axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    for place, row in zip(places, rows, strict=True):
        if row.best is None:
            _value(axes, min(known), place, "unknown")
        else:
            axes.plot(row.best, place, "o", color=colour(row), markersize=5)
            _value(axes, row.best + 0.06 * spread, place, f"{row.best:.4f}")


def _progress(
    axes: "Axes", rows: Sequence[Row], names: Sequence[str], comparison: Comparison
) -> None:
    """A curve for each run that has evaluations, and a legend that names the runs."""
    _title(axes, f"{comparison.metric} while training", "seconds of training, evaluation included")
    axes.set_ylabel(with_unit(comparison.metric), fontsize=8, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#EEEEEE")
    axes.set_axisbelow(True)
    drawn = [(row, name) for row, name in zip(rows, names, strict=True) if _points(row)]
    if not drawn:
        _nothing(axes, "no run has recorded times yet")
        return
    few = len(drawn) <= MOST_CURVES
    seen: Counter[str] = Counter()
    curves: dict[str, Line2D] = {}
    for row, name in drawn:
        nth = seen[row.run.schedule] if few else 0
        seen[row.run.schedule] += 1
        (curve,) = axes.plot(
            *zip(*_points(row), strict=True),
            color=colour(row),
            linestyle=LINES[nth % len(LINES)],
            marker=MARKERS[nth % len(MARKERS)],
            markersize=4 if few else 2,
            linewidth=1.4 if few else 0.8,
        )
        curves.setdefault(name if few else row.run.schedule, curve)
    if not few:
        curves = {f"{printable(key, 60)} ({seen[key]} runs)": c for key, c in curves.items()}
    if comparison.target is not None:
        line = axes.axhline(comparison.target, color="#999999", linewidth=0.8, zorder=0)
        if few:
            curves[f"{comparison.target:.4g}, which all completed runs reached"] = line
    axes.set_xlim(left=0)
    made = axes.figure.legend(  # below the panel, where it hides no curve
        list(curves.values()),
        [fill(name, HEAD_WIDTH) for name in curves],
        loc="outside lower left",
        ncols=1 if few else 6,
        fontsize=8,
        frameon=False,
    )
    for text in made.get_texts():
        text.set_parse_math(False)  # a name is no formula


def _points(row: Row) -> list[tuple[float, float]]:
    return [(e.seconds, e.value) for e in row.run.evaluations if e.seconds is not None]


def _title(axes: "Axes", title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, parse_math=False)
    axes.set_xlabel(unit, fontsize=8, parse_math=False)


def _value(axes: "Axes", x: float, y: float, text: str) -> None:
    """A number that a line behind it does not cross out."""
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.text(x, y, text, va="center", fontsize=8, bbox=behind)


def _nothing(axes: "Axes", why: str = "no data") -> None:
    axes.set_xticks([])
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color="#666666")
