"""Writes a trace and a picture of the stages' work over a few batches."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from ppll_cli.leaves.files import write_json
from ppll_cli.observe.spans import Lanes, Span, Traced
from ppll_cli.observe.timeline_picture import picture
from ppll_cli.pipeline.rules import receives, sends


def title(summary: Mapping[str, Any]) -> str:
    """Return the title of a timeline.

    It has the run's schedule, model, data, batch size and speed, and its bubble as measured and as
    predicted. Unknown numbers are left out.
    """
    rate, pipeline = summary["train"]["samples_per_second"], summary["pipeline"]
    said = summary["schedule"]
    if summary["microbatches"] > 1:
        said += f", {summary['microbatches']} micro-batches"
    said += f": {summary['model']} on {summary['data']}, batches of {summary['batch_size']}"
    if rate is not None:
        said += f", {rate:.0f} samples/s"
    kinds = {"bubble_fraction": "measured", "predicted_bubble_fraction": "predicted"}
    known = [
        f"{pipeline[key]:.3f} {how}" for key, how in kinds.items() if pipeline[key] is not None
    ]
    return f"{said}; bubble {', '.join(known)}" if known else str(said)


def write(folder: Path, traced: Traced) -> None:
    """Write `timeline.json` and `timeline.png` to a run directory.

    Raises:
        OSError: A file cannot be written.
    """
    write_json(folder / "timeline.json", trace(traced))
    picture(folder / "timeline.png", traced)


def trace(traced: Traced) -> dict[str, Any]:
    """Return a Chrome trace for Perfetto, with a process for each worker."""
    lanes, restarts = traced.lanes, traced.restarts
    starts_s = [span.start_s for span in chain(*lanes)]
    zero_s = min(starts_s + [restart.start_s for restart in restarts])
    events: list[dict[str, Any]] = []
    workers = zip(lanes, traced.names, traced.devices, strict=True)
    for worker, (spans, name, device) in enumerate(workers):
        for what, args in (
            ("process_name", {"name": f"stage {name} ({device})"}),
            ("process_sort_index", {"sort_index": worker}),
            ("thread_name", {"name": "instructions"}),
        ):
            events.append({"name": what, "ph": "M", "pid": worker, "tid": worker, "args": args})
        for span in spans:
            what = span.kind if span.instruction is None else type(span.instruction).__name__
            fields = {} if span.instruction is None else asdict(span.instruction)
            about = {"batch": span.step, "kind": span.kind, **fields}
            events.append(_event(worker, what, span, zero_s, about))
    for restart in restarts:
        about = {key: getattr(restart, key) for key in ("error", "phase", "batch")}
        events.append(_event(restart.worker, "restart", restart.span, zero_s, about))
    events += _arrows(lanes, zero_s, traced.replicas)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"title": traced.title}}


def _event(
    worker: int, name: str, span: Span, zero_s: float, args: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": span.category,
        "ph": "X",
        "ts": _microseconds(span.start_s - zero_s),
        "dur": _microseconds(span.end_s - span.start_s),
        "pid": worker,
        "tid": worker,
        "args": args,
    }


def _arrows(lanes: Lanes, zero_s: float, replicas: int) -> Iterator[dict[str, Any]]:
    transfers = [
        (worker, span, span.instruction)
        for worker, spans in enumerate(lanes)
        for span in spans
        if span.kind == "transfer" and span.instruction is not None
    ]
    sent: defaultdict[Any, deque[tuple[int, Span]]] = defaultdict(deque)
    for worker, span, instruction in transfers:
        if found := sends(worker // replicas, instruction):
            sent[worker % replicas, found, span.step].append((worker, span))
    number = 0
    for worker, span, instruction in transfers:
        found = receives(worker // replicas, instruction)
        if found is None or not (waiting := sent[worker % replicas, found, span.step]):
            continue  # the message was sent before the trace began
        source, other = waiting.popleft()
        middle_s = (span.start_s + span.end_s) / 2
        if middle_s < other.start_s:  # the workers' clocks differ a little
            continue
        number += 1
        message = {"name": found[1].kind, "cat": "message", "id": number}
        for end, at_s, place in (
            ({"ph": "s"}, other.start_s, source),
            ({"ph": "f", "bp": "e"}, middle_s, worker),
        ):
            ts = _microseconds(at_s - zero_s)
            yield {**message, **end, "ts": ts, "pid": place, "tid": place}


def _microseconds(seconds: float) -> float:
    return round(1e6 * seconds, 3)
