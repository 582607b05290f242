"""Writes a trace and a picture of the stages' work over a few batches of the steady state."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from ppll_cli.leaves.files import write_json
from ppll_cli.leaves.printable import printable
from ppll_cli.observe.figures import figure
from ppll_cli.pipeline.instructions import Forward, Instruction, Loss
from ppll_cli.pipeline.rules import receives, sends

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
"""Colours of categories, mostly from the palette of Okabe and Ito for colour-blind readers."""

RARE = ("snapshot", "restart")
"""Categories that the legend leaves out if the picture does not show them."""

LEGEND = {
    "auxiliary": "auxiliary network",
    "optimizer": "optimizer step",
    "data": "next batch",
    "average": "average of replicas",
    "idle": "waiting (bubble)",
    "restart": "restart of the stage",
}
"""Names in the legend for categories whose own names are not clear enough."""

SHOWN = 4
"""Number of batches of the slowest stage in the picture. The file has all traced batches."""

LANE_INCHES = 0.5
MOST_INCHES = 40.0
TITLE_WIDTH = 92
"""Characters per line of the title."""

DIGIT_SHARE = 0.0085
"""Smallest width of a bar, for each digit of its batch's number, at which the bar shows the number;
a fraction of the picture's width."""


class Span(NamedTuple):
    """An interval of a stage's time.

    Attributes:
        start_s: Start of the interval, in seconds on a clock that all stages share.
        end_s: End of the interval, on the same clock.
        kind: What the stage did, one of `progress.KINDS`.
        instruction: The instruction that the stage executed; None for an interval without one.
        step: Number of the batch: optimizer steps before it.
    """

    start_s: float
    end_s: float
    kind: str
    instruction: Instruction | None
    step: int

    def later(self, seconds: float) -> "Span":
        """Return this span moved to a later time."""
        return self._replace(start_s=self.start_s + seconds, end_s=self.end_s + seconds)

    @property
    def category(self) -> str:
        """The category of the span, a key of `COLOURS`."""
        if self.kind in ("starved", "blocked"):
            return "idle"
        if self.kind == "compute":
            return "forward" if isinstance(self.instruction, Forward | Loss) else "backward"
        if self.kind == "transfer":
            sends = type(self.instruction).__name__.startswith("Send")
            return "send" if sends else "receive"
        return self.kind


Lanes = Sequence[Sequence[Span]]
"""The spans of each worker; none for a worker that failed before its trace was complete."""


class Restart(NamedTuple):
    """A restart of a worker with `recover=stage`.

    Attributes:
        worker: Index of the worker in the list of lanes.
        start_s: When the launcher detected the fault, in seconds on the clock of the spans.
        end_s: When the new worker continued the work, or failed like the old worker.
        error: The fault in words.
        phase: What the worker did when it failed.
        batch: The batch or mark (see `job.course`) at which it failed; None if it was starting.
    """

    worker: int
    start_s: float
    end_s: float
    error: str
    phase: str
    batch: str | None

    @property
    def span(self) -> Span:
        """The time of the restart as a bar of the picture."""
        return Span(self.start_s, self.end_s, "restart", None, 0)


def title(summary: Mapping[str, Any]) -> str:
    """Return a title with a run's schedule, speed, and measured and predicted bubble."""
    rate, pipeline = summary["train"]["samples_per_second"], summary["pipeline"]
    splits = f", {summary['microbatches']} micro-batches" if summary["microbatches"] > 1 else ""
    bubbles = ", ".join(
        f"{pipeline[key]:.3f} {how}"
        for key, how in (
            ("bubble_fraction", "measured"),
            ("predicted_bubble_fraction", "predicted"),
        )
        if pipeline[key] is not None
    )
    return (
        f"{summary['schedule']}{splits}: {summary['model']} on {summary['data']}, "
        f"batches of {summary['batch_size']}"
        + (f", {rate:.0f} samples/s" if rate is not None else "")
        + (f"; bubble {bubbles}" if bubbles else "")
    )


def write(
    folder: Path,
    lanes: Lanes,
    names: Sequence[str],
    devices: Sequence[str],
    title: str,
    replicas: int = 1,
    restarts: Sequence[Restart] = (),
) -> None:
    """Write `timeline.json` and `timeline.png`.

    Args:
        folder: The run directory.
        lanes: The spans of each worker, with replicas of a stage next to one another.
        names: The name of each worker, by stage and replica.
        devices: The device of each worker.
        title: The title of the picture.
        replicas: Number of replicas of each stage.
        restarts: The restarts of workers.

    Raises:
        OSError: One of the files cannot be written.
    """
    made = trace(lanes, names, devices, title, replicas, restarts)
    write_json(folder / "timeline.json", made)
    picture(folder / "timeline.png", lanes, names, devices, title, restarts)


def trace(
    lanes: Lanes,
    names: Sequence[str],
    devices: Sequence[str],
    title: str,
    replicas: int = 1,
    restarts: Sequence[Restart] = (),
) -> dict[str, Any]:
    """Return a Chrome trace for Perfetto: a process for each worker, times in microseconds.

    Args:
        lanes: The spans of each worker, with replicas of a stage next to one another.
        names: The name of each worker, by stage and replica.
        devices: The device of each worker.
        title: The title of the run.
        replicas: Number of replicas of each stage.
        restarts: The restarts of workers.
    """
    starts_s = [span.start_s for span in chain(*lanes)]
    zero_s = min(starts_s + [restart.start_s for restart in restarts])
    events: list[dict[str, Any]] = []
    for worker, (spans, name, device) in enumerate(zip(lanes, names, devices, strict=True)):
        place = {"pid": worker, "tid": worker}
        for what, args in (
            ("process_name", {"name": f"stage {name} ({device})"}),
            ("process_sort_index", {"sort_index": worker}),
            ("thread_name", {"name": "instructions"}),
        ):
            events.append({"name": what, "ph": "M", **place, "args": args})
        for span in spans:
            fields = _fields(span.instruction)
            what = span.kind if span.instruction is None else type(span.instruction).__name__
            events.append(
                {
                    "name": what,
                    "cat": span.category,
                    "ph": "X",
                    "ts": _microseconds(span.start_s - zero_s),
                    "dur": _microseconds(span.end_s - span.start_s),
                    **place,
                    "args": {"batch": span.step, "kind": span.kind, **fields},
                }
            )
    for restart in restarts:
        events.append(
            {
                "name": "restart",
                "cat": "restart",
                "ph": "X",
                "ts": _microseconds(restart.start_s - zero_s),
                "dur": _microseconds(restart.end_s - restart.start_s),
                "pid": restart.worker,
                "tid": restart.worker,
                "args": {key: getattr(restart, key) for key in ("error", "phase", "batch")},
            }
        )
    events += _arrows(lanes, zero_s, replicas)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"title": title}}


def _arrows(lanes: Lanes, zero_s: float, replicas: int) -> Iterator[dict[str, Any]]:
    """Yield an arrow for each message, from the start of its send to the middle of its receive.

    Perfetto attaches each end of an arrow to the bar at that time. Clocks of two workers differ a
    little; an arrow that would point back in time is left out.
    """
    sent: dict[Any, list[tuple[int, Span]]] = {}
    spans = [
        (worker, span)
        for worker, own in enumerate(lanes)
        for span in own
        if span.kind == "transfer"
    ]
    for worker, span in spans:
        if span.instruction is not None and (found := sends(worker // replicas, span.instruction)):
            key = (worker % replicas, found, span.step)
            sent.setdefault(key, []).append((worker, span))
    number = 0
    for worker, span in spans:
        if span.instruction is None:
            continue
        found = receives(worker // replicas, span.instruction)
        waiting = sent.get((worker % replicas, found, span.step))
        if found is None or not waiting:  # the message was sent before the trace began
            continue
        source, other = waiting.pop(0)
        middle_s = (span.start_s + span.end_s) / 2
        if middle_s < other.start_s:
            continue
        number += 1
        message = {"name": found[1].kind, "cat": "message", "id": number}
        yield {
            **message,
            "ph": "s",
            "ts": _microseconds(other.start_s - zero_s),
            "pid": source,
            "tid": source,
        }
        yield {
            **message,
            "ph": "f",
            "bp": "e",
            "ts": _microseconds(middle_s - zero_s),
            "pid": worker,
            "tid": worker,
        }


def _microseconds(seconds: float) -> float:
    return round(1e6 * seconds, 3)


def _fields(instruction: Instruction | None) -> Mapping[str, int]:
    """Return an instruction's fields, such as chunk, micro-batch and peer."""
    slots = getattr(type(instruction), "__slots__", ())
    return {name: getattr(instruction, name) for name in slots}


def window(lanes: Lanes) -> tuple[float, float]:
    """Return start and end of the time that the picture shows.

    It is the time in which all stages were traced, up to the end of the `SHOWN`th batch of the
    slowest stage. A stage is traced for longer where channels let it get far ahead of another one.
    If there is no such time, it is the time in which any stage was traced.
    """
    starts = [min(span.start_s for span in spans) for spans in lanes if spans]
    ends = [max(span.end_s for span in spans) for spans in lanes if spans]
    start_s = max(starts)
    if start_s < min(ends):
        return start_s, min(*ends, max(_shown_until(spans, start_s) for spans in lanes if spans))
    return min(starts), max(ends)


def _shown_until(spans: Sequence[Span], start_s: float) -> float:
    """Return when a worker ended the `SHOWN`th batch that it began at `start_s` or later."""
    batches: dict[int, tuple[float, float]] = {}
    for span in spans:
        first_s, last_s = batches.get(span.step, (span.start_s, span.end_s))
        batches[span.step] = min(first_s, span.start_s), max(last_s, span.end_s)
    ends = sorted(last_s for first_s, last_s in batches.values() if first_s >= start_s)
    return [start_s, *ends[:SHOWN]][-1]


def picture(
    path: Path,
    lanes: Lanes,
    names: Sequence[str],
    devices: Sequence[str],
    title: str,
    restarts: Sequence[Restart] = (),
) -> None:
    """Draw a lane for each worker. A bar that is wide enough shows the number of its batch."""
    from matplotlib.patches import Patch

    start_s, end_s = window(lanes)
    drawn = [
        list(_clipped([*spans, *(r.span for r in restarts if r.worker == lane)], start_s, end_s))
        for lane, spans in enumerate(lanes)
    ]
    shown = {span.category for spans in drawn for span in spans}
    with figure(path, min(MOST_INCHES, 1.9 + LANE_INCHES * len(lanes))) as made:
        axes = made.add_subplot()
        for lane, spans in enumerate(drawn):
            _draw(axes, lane, spans, end_s - start_s)
        axes.set_xlim(0, 1e3 * (end_s - start_s))
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        places = [f"stage {name}\n{device}" for name, device in zip(names, devices, strict=True)]
        axes.set_yticks(range(len(lanes)), places, fontsize=9, parse_math=False)
        axes.tick_params(axis="x", labelsize=9)
        axes.set_xlabel("time in ms; numbers are those of batches (optimizer steps)", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        text = fill(printable(title), TITLE_WIDTH)
        axes.set_title(text, loc="left", fontsize=10, parse_math=False)
        handles = [
            Patch(facecolor=c, edgecolor="black", linewidth=0.5, label=LEGEND.get(name, name))
            for name, c in COLOURS.items()
            if name not in RARE or name in shown
        ]
        made.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)


def _clipped(spans: Sequence[Span], start_s: float, end_s: float) -> Iterator[Span]:
    """Yield the parts of spans between two times, with times relative to `start_s`."""
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
            dark = span.category == "backward"
            axes.text(
                middle_ms,
                lane,
                number,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
                clip_on=True,
            )
