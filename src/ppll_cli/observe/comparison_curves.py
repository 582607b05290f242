"""Draws the lower part of a comparison's picture: the metric over time, and the legend."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import Comparison
from ppll_cli.observe.comparison_labels import HEAD_WIDTH, with_unit
from ppll_cli.observe.comparison_style import Style
from ppll_cli.observe.groups import Group, Row
from ppll_cli.observe.noise import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def draw(
    axes: "Axes",
    groups: Sequence[Group],
    names: Sequence[str],
    comparison: Comparison,
    style: Style,
) -> None:
    """Draw a curve for each evaluated group, and the legend of the whole picture."""
    axes.set_title(f"{comparison.metric} while training", loc="left", fontsize=9)
    axes.set_xlabel("seconds of training, evaluation included", fontsize=8)
    axes.set_ylabel(with_unit(comparison.metric), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#EEEEEE")
    axes.set_axisbelow(True)
    drawn = [group for group in groups if points(group)]
    few = len(groups) <= MOST_CURVES
    curves = {
        id(group): _curve(axes, group, style, MARKERS[nth % len(MARKERS)] if few else None)
        for nth, group in enumerate(drawn)
    }
    entries = _entries(groups, names, style, curves)
    if drawn and comparison.target is not None:
        line = axes.axhline(comparison.target, color="#999999", linewidth=0.8, zorder=0)
        entries[f"{comparison.target:.4g}, which all completed runs reached"] = line
    if drawn:
        axes.set_xlim(left=0)
    else:
        axes.set_xticks([])
        why = "no run has recorded times yet"
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color="#666666")
    _legend(axes.figure, entries, 1 if few else COLUMNS)


def _curve(axes: "Axes", group: Group, style: Style, marker: str | None) -> Any:
    """Draw a group's mean metric over time, and its standard deviation if `marker` is not None."""
    seconds, values, deviations = zip(*points(group), strict=True)
    colour = style.colour(group)
    (line,) = axes.plot(
        seconds,
        values,
        color=colour,
        linestyle=style.dash(group),
        marker=marker,
        markersize=4,
        linewidth=1.4 if marker else 0.9,
    )
    if marker and any(deviations):
        low, high = (
            [v + sign * d for v, d in zip(values, deviations, strict=True)] for sign in (-1, 1)
        )
        axes.fill_between(seconds, low, high, color=colour, alpha=0.15, linewidth=0)
    return line


def _entries(
    groups: Sequence[Group], names: Sequence[str], style: Style, curves: Mapping[int, Any]
) -> dict[str, Any]:
    """Return the symbols of the legend, by the text beside each symbol."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if len(groups) <= MOST_CURVES:
        return {
            fill(name, HEAD_WIDTH): (
                Patch(facecolor=style.colour(g), edgecolor="white", hatch=style.hatch(g)),
                *([curves[id(g)]] if id(g) in curves else []),
            )
            for g, name in zip(groups, names, strict=True)
        }
    found: dict[str, Any] = {
        f"schedule {name}": Patch(facecolor=colour) for name, colour in style.colours.items()
    }
    for name, hatch in style.hatches.items() if len(style.hatches) > 1 else ():
        bar = Patch(facecolor="#666666", edgecolor="white", hatch=hatch)
        found[f"method {name}"] = (bar, Line2D([], [], color="#666666", ls=style.dashes[name]))
    return found


def lines(groups: Sequence[Group], names: Sequence[str], style: Style) -> int:
    """Return an upper bound for the number of text lines in the legend."""
    if len(groups) <= MOST_CURVES:
        return 1 + sum(fill(name, HEAD_WIDTH).count("\n") + 1 for name in names)
    return 1 + -(-(len(style.colours) + len(style.hatches)) // COLUMNS)


def _legend(figure: Any, entries: Mapping[str, Any], columns: int) -> None:
    """Draw the legend below the panels, where it hides no curve."""
    from matplotlib.legend_handler import HandlerTuple

    longest = 10 * HEAD_WIDTH if columns == 1 else 40
    figure.legend(
        list(entries.values()),
        [printable(name, longest) for name in entries],
        loc="outside lower left",
        ncols=columns,
        fontsize=8,
        frameon=False,
        handlelength=4.0,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )
