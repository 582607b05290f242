"""Writes a trace and a picture of the stages' work over a few batches of the steady state."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ppll_cli.leaves.files import write_json
from ppll_cli.observe.spans import Lanes, Restart, Span
from ppll_cli.observe.timeline_picture import picture
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.rules import receives, sends


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
