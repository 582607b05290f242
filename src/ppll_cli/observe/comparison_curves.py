"""Draws the lower part of a comparison's picture: the metric over time, and the legend."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import Comparison
from ppll_cli.observe.comparison_labels import HEAD_WIDTH, with_unit
from ppll_cli.observe.comparison_style import Drawn
from ppll_cli.observe.groups import Group, Row
from ppll_cli.observe.noise import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

MOST_CURVES = 8
"""Largest number of groups for which the legend lists each group. For more groups, it lists only
schedules and methods."""

COLUMNS = 4
"""Number of columns of a legend that lists schedules and methods."""

MARKERS = "os^DvxP*"


class Point(NamedTuple):
    """A group's mean training time and mean metric after some number of optimizer steps.

    `deviation` is the standard deviation of the metric over the runs; 0 for one run.
    """

    seconds: float
    value: float
    deviation: float


def points(group: Group) -> list[Point]:
    """Return a group's curve, with a point for each step at which all its runs were evaluated."""
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


def draw(axes: "Axes", groups: Sequence[Drawn], comparison: Comparison) -> None:
    """Draw a curve for each evaluated group, and the legend of the whole picture."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_title(f"{comparison.metric} while training", loc="left", fontsize=9)
    axes.set_xlabel("seconds of training, evaluation included", fontsize=8)
    axes.set_ylabel(with_unit(comparison.metric), fontsize=8)
    few = len(groups) <= MOST_CURVES
    curves = [_curve(axes, each, few) for each in groups]
    entries: dict[str, Any] = {}
    if few:
        for each, curve in zip(groups, curves, strict=True):
            bar = Patch(facecolor=each.colour, edgecolor="white", hatch=each.hatch)
            entries[fill(each.label, HEAD_WIDTH)] = (bar, *curve)
    else:
        schedules, methods = _schedules(groups), _methods(groups)
        for name, each in schedules.items():
            entries[f"schedule {name}"] = Patch(facecolor=each.colour)
        for name, each in methods.items() if len(methods) > 1 else ():
            bar = Patch(facecolor="#666666", edgecolor="white", hatch=each.hatch)
            entries[f"method {name}"] = (bar, Line2D([], [], color="#666666", ls=each.dash))
    if any(curves) and comparison.target is not None:
        line = axes.axhline(comparison.target, color="#999999", linewidth=0.8, zorder=0)
        entries[f"{comparison.target:.4g}, which all completed runs reached"] = line
    if any(curves):
        axes.set_xlim(left=0)
    else:
        no_data(axes, "no run has recorded times yet")
    axes.figure.legend(  # below the panels, where it hides no curve
        list(entries.values()),
        [printable(name, 10 * HEAD_WIDTH if few else 40) for name in entries],
        loc="outside lower left",
        ncols=1 if few else COLUMNS,
        fontsize=8,
        frameon=False,
        handlelength=4.0,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )


def no_data(axes: "Axes", text: str) -> None:
    """Write a text into the middle of empty axes."""
    axes.set_xticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="#666666")


def _curve(axes: "Axes", drawn: Drawn, few: bool) -> list["Line2D"]:
    """Draw a group's mean metric over time; if there are few curves, its deviation too.

    Return the line; an empty list if the group was not evaluated.
    """
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


def _schedules(groups: Sequence[Drawn]) -> dict[str, Drawn]:
    """Return a group for each schedule."""
    return {each.schedule: each for each in groups}


def _methods(groups: Sequence[Drawn]) -> dict[str, Drawn]:
    """Return a group for each local method."""
    return {each.method: each for each in groups if each.method is not None}


def lines(groups: Sequence[Drawn]) -> int:
    """Return an upper bound for the number of text lines in the legend."""
    if len(groups) <= MOST_CURVES:
        return 1 + sum(fill(each.label, HEAD_WIDTH).count("\n") + 1 for each in groups)
    return 1 + -(-(len(_schedules(groups)) + len(_methods(groups))) // COLUMNS)
