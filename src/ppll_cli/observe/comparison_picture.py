"""Draws a comparison: speed, memory and metric of each group, and the metric over time."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ppll_cli.observe import comparison_curves as curves
from ppll_cli.observe.comparison import NOISE, Comparison
from ppll_cli.observe.comparison_labels import HEAD_WIDTH, labels, notes, shared, with_unit
from ppll_cli.observe.comparison_style import Style
from ppll_cli.observe.figures import figure
from ppll_cli.observe.groups import Group, Measure
from ppll_cli.observe.noise import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_WIDTH = 36
"""Characters per line of a label."""

LINE_INCHES, GAP_INCHES, BAR_INCHES = 0.145, 0.1, 0.17
CURVES_INCHES = 2.6

PANEL_INCHES, CHARACTER_INCHES = 1.95, 0.066
"""Width in inches of a panel without its labels, and of a character of its numbers."""

MARK = "#333333"
"""Colour of error bars and of points of single runs. A white edge separates them from bars."""


def picture(path: Path, comparison: Comparison) -> None:
    """Draw a comparison into a PNG file.

    Raises:
        OSError: The file cannot be written.
    """
    groups = [group for group in comparison.groups if group.status != "refused"]
    names, style = labels(groups), Style.of(groups)
    wrapped = [fill(name, LABEL_WIDTH) for name in names]
    places, end = _places(wrapped)
    head = "\n".join([shared(groups), *(fill(note, HEAD_WIDTH) for note in notes(comparison))])
    lines = head.count("\n") + curves.lines(groups, names, style)
    height = end + CURVES_INCHES + LINE_INCHES * lines + 1.9
    with figure(path, height) as made:
        made.suptitle(head, fontsize=9, x=0.01, ha="left", parse_math=False)
        grid = made.add_gridspec(2, 3, height_ratios=[end, CURVES_INCHES])
        panels = [made.add_subplot(grid[0, column]) for column in range(3)]
        for axes, draw in zip(panels, (_speed, _memory, _best), strict=True):
            draw(axes, groups, places, style, comparison)
            axes.set_ylim(end, 0)
            axes.set_yticks(places, wrapped if axes is panels[0] else [], parse_math=False)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        curves.draw(made.add_subplot(grid[1, :]), groups, names, comparison, style)


def _places(wrapped: Sequence[str]) -> tuple[list[float], float]:
    """Return the middle of each label and the end of the last label, in inches from the top."""
    places, end = [], GAP_INCHES / 2
    for text in wrapped:
        high = LINE_INCHES * (1 + text.count("\n")) + GAP_INCHES
        places.append(end + high / 2)
        end += high
    return places, max(end, 4 * (LINE_INCHES + GAP_INCHES))  # so that few bars are not too broad


def _speed(
    axes: "Axes",
    groups: Sequence[Group],
    places: Sequence[float],
    style: Style,
    comparison: Comparison,
) -> None:
    """Draw the speed of each group, relative to back-propagation if any group has this baseline."""
    over = any(group.over_bp is not None for group in groups)
    rates = {bp.rate.mean for g in groups for bp in g.first.bps[:1] if g.over_bp and bp.rate}
    base = f"{rates.pop():.0f} " if len(rates) == 1 else ""
    _title(axes, "speed", f"times bp's {base}samples/s" if over else "samples/s")

    def measure(row: Any) -> float | None:
        found: float | None = row.over_bp if over else row.samples_per_second
        return found

    found = [group.spread(measure) for group in groups]
    if not any(each and each.mean for each in found):
        _nothing(axes)
        return
    for group, place, each in zip(groups, places, found, strict=True):
        if each is not None:
            _bar(axes, place, each.mean, style, group)
        _marks(axes, place, group, measure, 1.0)
    form = ".2f" if over else ".0f"
    texts = [_text(g, measure, form, judged=lambda row: row.samples_per_second) for g in groups]
    _values(axes, places, texts)
    if over:
        axes.axvline(1.0, color="#999999", linewidth=0.8, zorder=0)


def _memory(
    axes: "Axes",
    groups: Sequence[Group],
    places: Sequence[float],
    style: Style,
    comparison: Comparison,
) -> None:
    """Draw a bar for each group: the peak memory of all stages, side by side."""
    _title(axes, "peak memory (largest stage)", "MB of all stages, side by side")
    stages = [_stages(group) for group in groups]
    if not any(map(sum, stages)):
        _nothing(axes)
        return
    for place, group, sizes in zip(places, groups, stages, strict=True):
        left = 0.0
        for width in sizes:
            _bar(axes, place, width, style, group, left=left, linewidth=0.8)
            left += width
        _marks(axes, place, group, lambda row: sum(row.stage_bytes) or None, 1e6)
    texts = [_text(g, lambda row: row.peak_bytes, ".0f", 1e6, " MB") for g in groups]
    _values(axes, places, texts)


def _stages(group: Group) -> list[float]:
    """Return the mean peak memory of each stage over a group's runs, in MB."""
    sizes = [row.stage_bytes for row in group.averaged]
    most = max(map(len, sizes))
    means = (spread(size[stage] for size in sizes if stage < len(size)) for stage in range(most))
    return [mean.mean / 1e6 for mean in means if mean is not None]


def _best(
    axes: "Axes",
    groups: Sequence[Group],
    places: Sequence[float],
    style: Style,
    comparison: Comparison,
) -> None:
    """Draw the best metric of each group as a point, on an axis that need not begin at 0."""
    metric = comparison.metric
    _title(axes, f"best {metric}", with_unit(metric))
    known = [row.best for group in groups for row in group.averaged if row.best is not None]
    if not known:
        _nothing(axes)
        return
    margin = 0.1 * ((max(known) - min(known)) or abs(max(known)) or 1.0)
    axes.set_xlim(min(known) - margin, max(known) + margin)
    axes.grid(visible=True, axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    for group, place in zip(groups, places, strict=True):
        if (found := group.spread(lambda row: row.best)) is not None:
            axes.plot(found.mean, place, "o", color=style.colour(group), markersize=5, zorder=5)
        _marks(axes, place, group, lambda row: row.best, 1.0)
    _values(axes, places, [_text(g, lambda row: row.best, ".4f") for g in groups])


def _bar(
    axes: "Axes",
    place: float,
    width: float,
    style: Style,
    group: Group,
    left: float = 0.0,
    linewidth: float = 0.0,
) -> None:
    axes.barh(
        place,
        width,
        left=left,
        height=BAR_INCHES,
        color=style.colour(group),
        edgecolor="white",  # the hatch has this colour too
        hatch=style.hatch(group),
        linewidth=linewidth,
    )


def _marks(axes: "Axes", place: float, group: Group, measure: Measure, scale: float) -> None:
    """Draw a group's standard deviation as a line and its runs as points, if it has several."""
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


def _text(
    group: Group,
    measure: Measure,
    form: str,
    scale: float = 1.0,
    unit: str = "",
    judged: Measure | None = None,
) -> str:
    """Return a group's mean and standard deviation as text.

    If the group differs from its reference by no more than noise, `NOISE` follows.

    The unit is written after the numbers. See `comparison_tables.cell` for the other arguments.
    """
    found = group.spread(measure)
    if found is None:
        return "unknown"
    noise = f" {NOISE}" if group.like(group.reference, judged or measure) else ""
    return found.written(form, scale) + unit + noise


def _values(axes: "Axes", places: Sequence[float], texts: Sequence[str]) -> None:
    """Write numbers at the right edge of a panel, and widen its axis to make room for them."""
    share = min(0.65, max(map(len, texts)) * CHARACTER_INCHES / PANEL_INCHES)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.set_xlim(low, low + (high - low) / (1 - share))
    for place, text in zip(places, texts, strict=True):
        axes.text(
            1.0,
            place,
            text,
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=8,
        )


def _title(axes: "Axes", title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, parse_math=False)
    axes.set_xlabel(unit, fontsize=8, parse_math=False)


def _nothing(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="#666666")
