"""Draws the picture of a timeline: what each stage did during a few batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.figures import figure
from ppll_cli.observe.spans import SHOWN, Lanes, Span, Traced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "forward": "#56B4E9",
    "backward": "#0072B2",
    "auxiliary": "#E69F00",
    "optimizer": "#009E73",
    "data": "#999999",
    "receive": "#F0E442",
    "send": "#CC79A7",
    "average": "#D55E00",
    "idle": "#FFFFFF",
    "snapshot": "#8C564B",
    "restart": "#000000",
}
"""Colours by category, mostly from the palette of Okabe and Ito for colour-blind readers."""

RARE = ("snapshot", "restart")
"""The legend has these categories only if the picture shows them."""

LEGEND = {
    "auxiliary": "auxiliary network",
    "optimizer": "optimizer step",
    "data": "next batch",
    "average": "average of replicas",
    "idle": "waiting (bubble)",
    "restart": "restart of the stage",
}

LANE_INCHES = 0.5
MOST_INCHES = 40.0
TITLE_WIDTH = 92

DIGIT_SHARE = 0.0085
"""Width of a digit, as a fraction of the picture's width."""


def window(lanes: Lanes) -> tuple[float, float]:
    """Return the start and the end of the time that the picture shows, in seconds.

    The picture starts when the last trace starts. It ends when the slowest stage has computed
    `SHOWN` batches, or earlier if a trace ends earlier. If the traces have no time in common, the
    picture shows all of them.
    """
    starts = [min(span.start_s for span in spans) for spans in lanes if spans]
    ends = [max(span.end_s for span in spans) for spans in lanes if spans]
    start_s = max(starts)
    if start_s < min(ends):
        return start_s, min(*ends, max(_shown_until(spans, start_s) for spans in lanes if spans))
    return min(starts), max(ends)


def _shown_until(spans: Sequence[Span], start_s: float) -> float:
    batches: dict[int, tuple[float, float]] = {}
    for span in spans:
        first_s, last_s = batches.get(span.step, (span.start_s, span.end_s))
        batches[span.step] = min(first_s, span.start_s), max(last_s, span.end_s)
    ends = sorted(last_s for first_s, last_s in batches.values() if first_s >= start_s)
    return [start_s, *ends[:SHOWN]][-1]


def picture(path: Path, traced: Traced) -> None:
    """Draw a lane for each worker into a PNG file.

    A bar shows the number of its batch if there is room.

    Raises:
        OSError: The file cannot be written.
    """
    lanes, restarts = traced.lanes, traced.restarts
    start_s, end_s = window(lanes)
    drawn = [
        list(_clipped([*spans, *(r.span for r in restarts if r.worker == lane)], start_s, end_s))
        for lane, spans in enumerate(lanes)
    ]
    shown = {span.category for spans in drawn for span in spans}
    with figure(path, min(MOST_INCHES, 1.9 + LANE_INCHES * len(lanes))) as made:
        from matplotlib.patches import Patch  # after `figure`, which must import matplotlib first

        axes = made.add_subplot()
        for lane, spans in enumerate(drawn):
            _draw(axes, lane, spans, end_s - start_s)
        axes.set_xlim(0, 1e3 * (end_s - start_s))
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        workers = zip(traced.names, traced.devices, strict=True)
        places = [f"stage {name}\n{device}" for name, device in workers]
        axes.set_yticks(range(len(lanes)), places, fontsize=9)
        axes.tick_params(axis="x", labelsize=9)
        axes.set_xlabel("time in ms; numbers are those of batches (optimizer steps)", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        text = fill(printable(traced.title), TITLE_WIDTH)
        axes.set_title(text, loc="left", fontsize=10)
        handles = [
            Patch(facecolor=c, edgecolor="black", linewidth=0.5, label=LEGEND.get(name, name))
            for name, c in COLOURS.items()
            if name not in RARE or name in shown
        ]
        made.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)


def _clipped(spans: Sequence[Span], start_s: float, end_s: float) -> Iterator[Span]:
    for span in spans:
        first, last = max(span.start_s, start_s), min(span.end_s, end_s)
        if first < last:
            yield span._replace(start_s=first - start_s, end_s=last - start_s)


def _draw(axes: "Axes", lane: int, spans: Sequence[Span], width_s: float) -> None:
    for category, colour in COLOURS.items():
        found = [span for span in spans if span.category == category]
        axes.broken_barh(
            [(1e3 * span.start_s, 1e3 * (span.end_s - span.start_s)) for span in found],
            (lane - 0.38, 0.76),
            facecolors=colour,
            edgecolors="black" if category != "idle" else "#BBBBBB",
            linewidth=0.3,
        )
    for span in spans:
        number = str(span.step)
        wide = span.end_s - span.start_s >= DIGIT_SHARE * (len(number) + 0.5) * width_s
        if wide and span.category in ("forward", "backward", "auxiliary"):
            middle_ms = 1e3 * (span.start_s + span.end_s) / 2
            colour = "white" if span.category == "backward" else "black"
            font = {"ha": "center", "va": "center", "fontsize": 7, "color": colour, "clip_on": True}
            axes.text(middle_ms, lane, number, font)
