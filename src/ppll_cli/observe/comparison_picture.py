"""Draws a comparison: speed, memory and metric of each group, and the metric over time."""

from collections.abc import Sequence
from itertools import accumulate, zip_longest
from math import ceil
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import Comparison
from ppll_cli.observe.comparison_labels import HEAD_WIDTH, Drawn, drawn, notes, shared, with_unit
from ppll_cli.observe.comparison_tables import MEASURES, cell
from ppll_cli.observe.figures import figure
from ppll_cli.observe.groups import Group, Measure, Row, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

LABEL_WIDTH = 36
"""Characters per line of a label."""

LINE_INCHES, GAP_INCHES, BAR_INCHES = 0.145, 0.1, 0.17
CURVES_INCHES = 2.6

PANEL_INCHES, CHARACTER_INCHES, TICK_INCHES = 1.95, 0.066, 0.45
"""Width of a panel without its labels, and widths of a character and of a tick label in a panel."""

MARK = "#333333"

MOST_CURVES = 8
"""Largest number of groups for which the legend lists each group. For more groups, it lists only
schedules and methods."""

COLUMNS = 4
"""Number of columns of a legend that lists schedules and methods."""

MARKERS = "os^DvxP*"


def picture(path: Path, comparison: Comparison) -> bool:
    """Draw a comparison into a PNG file, and return True.

    If all jobs were refused, there is nothing to draw: write no file, and return False.

    Raises:
        OSError: The file cannot be written.
    """
    groups = [group for group in comparison.groups if group.status != "refused"]
    if not groups:
        return False
    shown = drawn(groups)
    wrapped = [fill(each.label, LABEL_WIDTH) for each in shown]
    places, end = _places(wrapped)
    head = "\n".join([shared(groups), *(fill(note, HEAD_WIDTH) for note in notes(comparison))])
    height = end + CURVES_INCHES + LINE_INCHES * head.count("\n") + 1.9
    based = [group.first.bps[0] for group in groups if group.spread(Row.over_bp) is not None]
    rates = {bp.rate.mean for bp in based if bp.rate}
    base = f"{rates.pop():.0f} " if len(rates) == 1 else ""
    speed = ("speed_up_over_bp", f"times bp's {base}samples/s")
    panels = (
        ("speed", *(speed if based else ("samples_per_second", "samples/s"))),
        ("peak memory (largest stage)", "peak_memory_bytes", "MB of all stages, side by side"),
        (f"best {comparison.metric}", "best_metric", with_unit(comparison.metric)),
    )
    with figure(path, height) as made:
        made.suptitle(head, fontsize=9, x=0.01, ha="left")
        grid = made.add_gridspec(2, 3, height_ratios=[end, CURVES_INCHES])
        for nth, (title, key, unit) in enumerate(panels):
            axes = made.add_subplot(grid[0, nth])
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlabel(unit, fontsize=8)
            _panel(axes, shown, places, key)
            axes.set_ylim(end, 0)
            axes.set_yticks(places, wrapped if nth == 0 else [])
        lines = _curves(made.add_subplot(grid[1, :]), shown, comparison)
        made.set_figheight(height + LINE_INCHES * lines)
        made.axes[-1].grid(visible=True, color="#EEEEEE")
        for axes in made.axes:
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    return True


def _places(wrapped: Sequence[str]) -> tuple[list[float], float]:
    places, end = [], GAP_INCHES / 2
    for text in wrapped:
        high = LINE_INCHES * (1 + text.count("\n")) + GAP_INCHES
        places.append(end + high / 2)
        end += high
    return places, max(end, 4 * (LINE_INCHES + GAP_INCHES))  # at least four labels of one line


def _panel(axes: "Axes", shown: Sequence[Drawn], places: Sequence[float], key: str) -> None:
    is_memory, is_metric = key == "peak_memory_bytes", key == "best_metric"
    measure, _, _, scale, _ = MEASURES[key]
    if is_memory:
        measure = _memory
    sizes = [_stages(each.group) if is_memory else _mean(each.group, measure) for each in shown]
    if not any(sizes):
        _no_data(axes, "no data")
        return
    if is_metric:
        rows = [row for each in shown for row in each.group.averaged]
        known = [value for row in rows if (value := measure(row)) is not None]
        margin = 0.1 * ((max(known) - min(known)) or abs(max(known)) or 1.0)
        axes.set_xlim(min(known) - margin, max(known) + margin)
        axes.grid(visible=True, axis="x", color="#EEEEEE")
    for each, place, widths in zip(shown, places, sizes, strict=True):
        if is_metric:
            at = [place] * len(widths)
            axes.plot(widths, at, "o", color=each.colour, markersize=5, zorder=5)
        elif widths:
            axes.barh(
                place,
                widths,
                left=[0.0, *accumulate(widths)][:-1],
                height=BAR_INCHES,
                color=each.colour,
                edgecolor="white",  # the hatch has this colour too
                hatch=each.hatch,
                linewidth=0.8 if is_memory else 0.0,
            )
        _marks(axes, place, each.group, measure, scale)
    _values(axes, shown, places, key, " MB" if is_memory else "")
    if key == "speed_up_over_bp":
        axes.axvline(1.0, color="#999999", linewidth=0.8, zorder=0)


def _marks(axes: "Axes", place: float, group: Group, measure: Measure, scale: float) -> None:
    from matplotlib.patheffects import withStroke

    found = group.spread(measure)
    if found is None or found.deviation is None:
        return
    axes.errorbar(
        found.mean / scale,
        place,
        xerr=found.deviation / scale,
        color=MARK,
        elinewidth=1.1,
        capsize=2.5,
        path_effects=[withStroke(linewidth=2.6, foreground="white")],
        zorder=3,
    )
    values = [value / scale for row in group.averaged if (value := measure(row)) is not None]
    axes.plot(
        values,
        [place + BAR_INCHES * 0.3 * (-1) ** nth for nth in range(len(values))],
        "o",
        color=MARK,
        markersize=2.4,
        markeredgecolor="white",
        markeredgewidth=0.4,
        zorder=4,
    )


def _values(
    axes: "Axes", shown: Sequence[Drawn], places: Sequence[float], key: str, unit: str
) -> None:
    texts = [cell(each.group, key, unit=unit, counted=False) or "unknown" for each in shown]
    share = min(0.65, max(map(len, texts)) * CHARACTER_INCHES / PANEL_INCHES)
    room = (1 - share) * PANEL_INCHES
    axes.locator_params(axis="x", nbins=max(1, int(room / TICK_INCHES)))
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.set_xlim(low, low + (high - low) / (1 - share))  # makes room for the texts
    for place, text in zip(places, texts, strict=True):
        at = axes.get_yaxis_transform()
        axes.text(1.0, place, text, transform=at, ha="right", va="center", fontsize=8)


def _mean(group: Group, measure: Measure) -> list[float]:
    return [] if (found := group.spread(measure)) is None else [found.mean]


def _memory(row: Row) -> float | None:
    return sum(row.stage_bytes) or None


def _stages(group: Group) -> list[float]:
    sizes = zip_longest(*(row.stage_bytes for row in group.averaged))
    return [fmean(size for size in stage if size is not None) / 1e6 for stage in sizes]


class Point(NamedTuple):
    """A group's mean training time and mean metric after some number of optimizer steps.

    `deviation` is the standard deviation of the metric over the runs; 0 for one run.
    """

    seconds: float
    value: float
    deviation: float


def points(group: Group) -> list[Point]:
    """Return a group's curve: a point for each step at which all averaged runs were evaluated.

    Evaluations whose time is unknown are left out.
    """
    known = [_by_step(row) for row in group.averaged]
    found = []
    for step in known[0]:
        those = [each[step] for each in known if step in each]
        seconds, values = spread(s for s, _ in those), spread(v for _, v in those)
        if len(those) == len(known) and seconds is not None and values is not None:
            found.append(Point(seconds.mean, values.mean, values.deviation or 0.0))
    return found


def _by_step(row: Row) -> dict[int, tuple[float, float]]:
    known = row.run.evaluations
    return {e.step: (e.seconds, e.value) for e in known if e.seconds is not None}


def _curves(axes: "Axes", shown: Sequence[Drawn], comparison: Comparison) -> int:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_title(f"{comparison.metric} while training", loc="left", fontsize=9)
    axes.set_xlabel("seconds of training, evaluation included", fontsize=8)
    axes.set_ylabel(with_unit(comparison.metric), fontsize=8)
    few = len(shown) <= MOST_CURVES
    curves = [_curve(axes, each, few) for each in shown]
    entries: dict[str, Any]
    if few:
        entries = {
            fill(each.label, HEAD_WIDTH): (
                Patch(facecolor=each.colour, edgecolor="white", hatch=each.hatch),
                *curve,
            )
            for each, curve in zip(shown, curves, strict=True)
        }
    else:
        entries = {f"schedule {each.schedule}": Patch(facecolor=each.colour) for each in shown}
        methods = {
            f"method {each.method}": (
                Patch(facecolor="#666666", edgecolor="white", hatch=each.hatch),
                Line2D([], [], color="#666666", ls=each.dash),
            )
            for each in shown
            if each.method is not None
        }
        entries |= methods if len(methods) > 1 else {}
    if not any(curves):
        _no_data(axes, "no run has recorded times yet")
    else:
        axes.set_xlim(left=0)
        if comparison.target is not None:
            line = axes.axhline(comparison.target, color="#999999", linewidth=0.8, zorder=0)
            starred = any(each.group.first.unequal for each in shown)
            which = "comparable completed runs" if starred else "completed runs"
            entries[f"{comparison.target:.4g}, which all {which} reached"] = line
    columns = 1 if few else COLUMNS
    axes.figure.legend(  # below the panels, where it hides no curve
        list(entries.values()),
        [printable(name, 10 * HEAD_WIDTH if few else 40) for name in entries],
        loc="outside lower left",
        ncols=columns,
        fontsize=8,
        frameon=False,
        handlelength=4.0,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )
    return ceil(sum(name.count("\n") + 1 for name in entries) / columns)  # the legend's lines


def _no_data(axes: "Axes", text: str) -> None:
    axes.set_xticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="#666666")


def _curve(axes: "Axes", drawn: Drawn, few: bool) -> list["Line2D"]:
    if not (found := points(drawn.group)):
        return []
    seconds, values, deviations = map(np.array, zip(*found, strict=True))
    line = axes.plot(
        seconds,
        values,
        color=drawn.colour,
        linestyle=drawn.dash,
        marker=MARKERS[len(axes.lines) % len(MARKERS)] if few else None,
        markersize=4,
        linewidth=1.4 if few else 0.9,
    )
    if few and deviations.any():
        low, high = values - deviations, values + deviations
        axes.fill_between(seconds, low, high, color=drawn.colour, alpha=0.15, linewidth=0)
    return line
