"""Draws a comparison: speed, memory and metric of each group, and the metric over time."""

from collections.abc import Sequence
from itertools import accumulate, zip_longest
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING

from ppll_cli.observe import comparison_curves as curves
from ppll_cli.observe.comparison import Comparison
from ppll_cli.observe.comparison_curves import no_data
from ppll_cli.observe.comparison_labels import HEAD_WIDTH, notes, shared, with_unit
from ppll_cli.observe.comparison_style import Drawn, drawn
from ppll_cli.observe.comparison_tables import MEASURES, cell
from ppll_cli.observe.figures import figure
from ppll_cli.observe.groups import Group, Measure, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_WIDTH = 36
"""Characters per line of a label."""

LINE_INCHES, GAP_INCHES, BAR_INCHES = 0.145, 0.1, 0.17
CURVES_INCHES = 2.6

PANEL_INCHES, CHARACTER_INCHES = 1.95, 0.066
"""Width of a panel without its labels, and width of one character of the numbers in a panel."""

MARK = "#333333"


def picture(path: Path, comparison: Comparison) -> None:
    """Draw a comparison into a PNG file."""
    groups = [group for group in comparison.groups if group.status != "refused"]
    shown = drawn(groups)
    wrapped = [fill(each.label, LABEL_WIDTH) for each in shown]
    places, end = _places(wrapped)
    head = "\n".join([shared(groups), *(fill(note, HEAD_WIDTH) for note in notes(comparison))])
    height = end + CURVES_INCHES + LINE_INCHES * (head.count("\n") + curves.lines(shown)) + 1.9
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
        curves.draw(made.add_subplot(grid[1, :]), shown, comparison)
        made.axes[-1].grid(visible=True, color="#EEEEEE")
        for axes in made.axes:
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)


def _places(wrapped: Sequence[str]) -> tuple[list[float], float]:
    """Return the middle of each label, and the lower end of the panels, in inches from the top."""
    places, end = [], GAP_INCHES / 2
    for text in wrapped:
        high = LINE_INCHES * (1 + text.count("\n")) + GAP_INCHES
        places.append(end + high / 2)
        end += high
    return places, max(end, 4 * (LINE_INCHES + GAP_INCHES))  # at least four labels of one line


def _panel(axes: "Axes", shown: Sequence[Drawn], places: Sequence[float], key: str) -> None:
    """Draw one of `MEASURES` for each group, with its middle at `places` inches from the top.

    Speed and memory are bars; in a bar of memory, the stages follow one another. The best metric is
    a point, on an axis that need not begin at 0.
    """
    is_memory, is_metric = key == "peak_memory_bytes", key == "best_metric"
    measure, _, _, scale, _ = MEASURES[key]
    if is_memory:
        measure = _memory
    sizes = [_stages(each.group) if is_memory else _mean(each.group, measure) for each in shown]
    if not any(sizes):
        no_data(axes, "no data")
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
    """For a group with several seeds, draw the standard deviation and a point for each run."""
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
    """Write each group's text (see `cell`) at the right edge; widen the axis to make room."""
    texts = [cell(each.group, key, unit=unit, counted=False) or "unknown" for each in shown]
    share = min(0.65, max(map(len, texts)) * CHARACTER_INCHES / PANEL_INCHES)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.set_xlim(low, low + (high - low) / (1 - share))
    for place, text in zip(places, texts, strict=True):
        at = axes.get_yaxis_transform()
        axes.text(1.0, place, text, transform=at, ha="right", va="center", fontsize=8)


def _mean(group: Group, measure: Measure) -> list[float]:
    """Return the mean of a measure in a list, which is empty if the mean is unknown."""
    return [] if (found := group.spread(measure)) is None else [found.mean]


def _memory(row: Row) -> float | None:
    """Return the peak memory of all stages together, in bytes; None if unknown."""
    return sum(row.stage_bytes) or None


def _stages(group: Group) -> list[float]:
    """Return the mean peak memory of each stage over a group's averaged runs, in MB."""
    sizes = zip_longest(*(row.stage_bytes for row in group.averaged))
    return [fmean(size for size in stage if size is not None) / 1e6 for stage in sizes]
