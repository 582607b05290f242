"""Draws a comparison: speed, memory and metric of each group, and the metric over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from ppll_cli.observe import comparison_curves as curves
from ppll_cli.observe.comparison import Comparison
from ppll_cli.observe.comparison_labels import HEAD_WIDTH, labels, notes, shared, with_unit
from ppll_cli.observe.comparison_style import Style
from ppll_cli.observe.comparison_tables import cell
from ppll_cli.observe.figures import figure
from ppll_cli.observe.groups import Group, Measure, Row
from ppll_cli.observe.noise import spread

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
    names, style = labels(groups), Style.of(groups)
    wrapped = [fill(name, LABEL_WIDTH) for name in names]
    places, end = _places(wrapped)
    head = "\n".join([shared(groups), *(fill(note, HEAD_WIDTH) for note in notes(comparison))])
    lines = head.count("\n") + curves.lines(groups, names, style)
    height = end + CURVES_INCHES + LINE_INCHES * lines + 1.9
    with figure(path, height) as made:
        made.suptitle(head, fontsize=9, x=0.01, ha="left")
        grid = made.add_gridspec(2, 3, height_ratios=[end, CURVES_INCHES])
        panels = [_Panel(made.add_subplot(grid[0, n]), groups, places, style) for n in range(3)]
        speed, memory, best = panels
        speed.draw_speed()
        memory.draw_memory()
        best.draw_best(comparison.metric)
        for panel in panels:
            panel.axes.set_ylim(end, 0)
            panel.axes.set_yticks(places, wrapped if panel is speed else [])
            panel.axes.tick_params(labelsize=8)
            panel.axes.spines[["top", "right"]].set_visible(False)
        curves.draw(made.add_subplot(grid[1, :]), groups, names, comparison, style)


def _places(wrapped: Sequence[str]) -> tuple[list[float], float]:
    """Return the middle of each label, and the lower end of the panels, in inches from the top."""
    places, end = [], GAP_INCHES / 2
    for text in wrapped:
        high = LINE_INCHES * (1 + text.count("\n")) + GAP_INCHES
        places.append(end + high / 2)
        end += high
    return places, max(end, 4 * (LINE_INCHES + GAP_INCHES))  # at least four labels of one line


@dataclass(frozen=True)
class _Panel:
    """A panel of the picture. `places` has the middle of each group, in inches from the top."""

    axes: "Axes"
    groups: Sequence[Group]
    places: Sequence[float]
    style: Style

    def draw_speed(self) -> None:
        """Draw each group's speed, divided by back-propagation's if a group has this baseline."""
        based = [g.first.bps[0] for g in self.groups if g.spread(Row.over_bp) is not None]
        rates = {bp.rate.mean for bp in based if bp.rate}
        base = f"{rates.pop():.0f} " if len(rates) == 1 else ""
        self._title("speed", f"times bp's {base}samples/s" if based else "samples/s")
        measure = Row.over_bp if based else Row.rate
        found = [group.spread(measure) for group in self.groups]
        if not any(each and each.mean for each in found):
            self._nothing()
            return
        for group, place, each in zip(self.groups, self.places, found, strict=True):
            if each is not None:
                self._bar(place, each.mean, group)
            self._marks(place, group, measure)
        self._values("speed_up_over_bp" if based else "samples_per_second")
        if based:
            self.axes.axvline(1.0, color="#999999", linewidth=0.8, zorder=0)

    def draw_memory(self) -> None:
        """Draw the peak memory of each group as a bar, in which the stages follow one another."""
        self._title("peak memory (largest stage)", "MB of all stages, side by side")
        stages = [_stages(group) for group in self.groups]
        if not any(map(sum, stages)):
            self._nothing()
            return
        for place, group, sizes in zip(self.places, self.groups, stages, strict=True):
            left = 0.0
            for width in sizes:
                self._bar(place, width, group, left, linewidth=0.8)
                left += width
            self._marks(place, group, lambda row: sum(row.stage_bytes) or None, 1e6)
        self._values("peak_memory_bytes", " MB")

    def draw_best(self, metric: str) -> None:
        """Draw each group's best metric as a point, on an axis that need not begin at 0."""
        self._title(f"best {metric}", with_unit(metric))
        averaged = [row for group in self.groups for row in group.averaged]
        known = [best for row in averaged if (best := row.best()) is not None]
        if not known:
            self._nothing()
            return
        margin = 0.1 * ((max(known) - min(known)) or abs(max(known)) or 1.0)
        self.axes.set_xlim(min(known) - margin, max(known) + margin)
        self.axes.grid(visible=True, axis="x", color="#EEEEEE")
        self.axes.set_axisbelow(True)
        for group, place in zip(self.groups, self.places, strict=True):
            if (found := group.spread(Row.best)) is not None:
                colour = self.style.colour(group)
                self.axes.plot(found.mean, place, "o", color=colour, markersize=5, zorder=5)
            self._marks(place, group, Row.best)
        self._values("best_metric")

    def _bar(
        self, place: float, width: float, group: Group, left: float = 0.0, linewidth: float = 0.0
    ) -> None:
        self.axes.barh(
            place,
            width,
            left=left,
            height=BAR_INCHES,
            color=self.style.colour(group),
            edgecolor="white",  # the hatch has this colour too
            hatch=self.style.hatch(group),
            linewidth=linewidth,
        )

    def _marks(self, place: float, group: Group, measure: Measure, scale: float = 1.0) -> None:
        """For a group with several seeds, draw the standard deviation and a point for each run."""
        from matplotlib.patheffects import withStroke

        found = group.spread(measure)
        if found is None or found.deviation is None:
            return
        self.axes.errorbar(
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
        self.axes.plot(
            values,
            [place + BAR_INCHES * 0.3 * (-1) ** nth for nth in range(len(values))],
            "o",
            color=MARK,
            markersize=2.4,
            markeredgecolor="white",
            markeredgewidth=0.4,
            zorder=4,
        )

    def _values(self, key: str, unit: str = "") -> None:
        """Write each group's text (see `cell`) at the right edge; widen the axis to make room."""
        texts = [cell(group, key, unit=unit, counted=False) or "unknown" for group in self.groups]
        share = min(0.65, max(map(len, texts)) * CHARACTER_INCHES / PANEL_INCHES)
        low, high = self.axes.get_xlim()
        self.axes.set_xticks([tick for tick in self.axes.get_xticks() if low <= tick <= high])
        self.axes.set_xlim(low, low + (high - low) / (1 - share))
        for place, text in zip(self.places, texts, strict=True):
            at = self.axes.get_yaxis_transform()
            self.axes.text(1.0, place, text, transform=at, ha="right", va="center", fontsize=8)

    def _title(self, title: str, unit: str) -> None:
        self.axes.set_title(title, loc="left", fontsize=9)
        self.axes.set_xlabel(unit, fontsize=8)

    def _nothing(self) -> None:
        self.axes.set_xticks([])
        middle, colour = self.axes.transAxes, "#666666"
        self.axes.text(0.5, 0.5, "no data", transform=middle, ha="center", color=colour)


def _stages(group: Group) -> list[float]:
    """Return the mean peak memory of each stage over a group's averaged runs, in MB."""
    sizes = [row.stage_bytes for row in group.averaged]
    most = max(map(len, sizes))
    means = (spread(size[stage] for size in sizes if stage < len(size)) for stage in range(most))
    return [mean.mean / 1e6 for mean in means if mean is not None]
