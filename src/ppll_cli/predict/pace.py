"""Finds the pace of a pipeline in its steady state, and how much the stages' work overlaps."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil

from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.rules import Channel, sends
from ppll_cli.pipeline.simulate import Cost, Event, Journeys, at_once, peak_live, simulate

FILLED = 2
"""Number of batches after which the simulated pipeline is in its steady state, if transfers take no
time: from the third batch on, batches end at equal intervals. Then two further batches are
simulated, and their mean time is the result.
"""

Times = dict[Instruction, float]
"""A number, such as seconds, for each instruction of a stage in a batch; 0 if missing."""

_Spans = list[tuple[float, float]]


@dataclass(frozen=True)
class Steady:
    """The steady state of a pipeline.

    Attributes:
        batch_s: Seconds from one batch to the next.
        events: For each stage, its instructions for one batch with their times.
        peak_live: For each stage, the largest number of forward passes that waited for their
            backward pass at the same time.
    """

    batch_s: float
    events: list[list[Event]]
    peak_live: list[int]

    @property
    def busy_s(self) -> list[float]:
        """The seconds of work for a batch, for each stage."""
        return [sum(event.end_s - event.start_s for event in events) for events in self.events]

    @property
    def bubble_fraction(self) -> float:
        """The fraction of the stages' total time in which they wait."""
        total_s = self.batch_s * len(self.events)
        return max(0.0, 1 - sum(self.busy_s) / total_s) if total_s else 0.0


def steady_state(
    streams: Sequence[Sequence[Instruction]],
    slots: Callable[[Channel], int],
    cost: Cost,
    journeys: Journeys = at_once,
) -> Steady:
    """Simulate a pipeline, and return its steady state.

    `streams` has the instructions of each stage for a training batch. The other arguments are those
    of `simulate`.

    Raises:
        DeadlockError: The stages wait for each other.
    """
    # If transfers take long, batches arrive in groups as large as a channel can hold.
    filled = FILLED if journeys is at_once else max(FILLED, _batches_held(streams, slots))
    run = simulate([list(stream) * 2 * filled for stream in streams], cost, slots, journeys)

    def end_s(batches: int) -> float:
        last = [batches * len(stream) - 1 for stream in streams]
        return max(events[n].end_s for events, n in zip(run, last, strict=True))

    return Steady(
        batch_s=(end_s(2 * filled) - end_s(filled)) / filled,
        events=[e[-len(s) :] for e, s in zip(run, streams, strict=True)],
        peak_live=[peak_live(stream) for stream in streams],
    )


def _batches_held(streams: Sequence[Sequence[Instruction]], slots: Callable[[Channel], int]) -> int:
    messages = Counter(
        sent[0]
        for stage, stream in enumerate(streams)
        for instruction in stream
        if (sent := sends(stage, instruction))
    )
    return max((ceil(slots(c) / count) for c, count in messages.items()), default=1)


def mean_neighbours(
    steady: Steady, limit: int, workers: Sequence[Mapping[int, int]]
) -> list[Times]:
    """Return how many other workers compute, on average, during each instruction of each stage.

    A CPU worker is slower while other workers of its machine compute.

    Args:
        steady: The steady state of the pipeline.
        limit: Largest number of other workers that is counted at a time.
        workers: For each stage, the number of its workers by machine.

    Returns:
        For each stage, the number for each instruction. If a stage has replicas on several
            machines, it is the largest of the machines' means: replicas wait for the slowest.
    """
    # Stages repeat their instructions every `batch_s` seconds, so take times modulo `batch_s`.
    pieces = [[_wrapped(e, steady.batch_s) for e in events] for events in steady.events]
    areas = {
        machine: _integral_of_others(
            pieces, [counts.get(machine, 0) for counts in workers], limit, steady.batch_s
        )
        for machine in {machine for counts in workers for machine in counts}
    }
    result = []
    for events, stage, counts in zip(steady.events, pieces, workers, strict=True):
        means: Times = {}
        for event, spans in zip(events, stage, strict=True):
            if lasted_s := sum(b - a for a, b in spans):
                beside = (sum(areas[m](b) - areas[m](a) for a, b in spans) for m in counts)
                means[event.instruction] = max(beside) / lasted_s
        result.append(means)
    return result


def _integral_of_others(
    pieces: Sequence[Sequence[_Spans]], workers: Sequence[int], limit: int, period_s: float
) -> Callable[[float], float]:
    changes: dict[float, int] = {0.0: 0, period_s: 0}
    for stage, count in zip(pieces, workers, strict=True):
        if not count:
            continue
        for start_s, end_s in (span for spans in stage for span in spans):
            changes[start_s] = changes.get(start_s, 0) + count
            changes[end_s] = changes.get(end_s, 0) - count
    times_s = sorted(changes)
    busy = accumulate(changes[time_s] for time_s in times_s)
    others = [min(limit, max(0, n - 1)) for n in busy]  # without the worker that they slow down
    lengths_s = (b - a for a, b in pairwise(times_s))
    sums = [0.0, *accumulate(n * length_s for n, length_s in zip(others, lengths_s, strict=False))]

    def area(time_s: float) -> float:
        at = bisect_right(times_s, time_s) - 1
        return sums[at] + others[at] * (time_s - times_s[at])

    return area


def _wrapped(event: Event, period_s: float) -> _Spans:
    length_s = min(event.end_s - event.start_s, period_s)
    if length_s <= 0:
        return []
    start_s = event.start_s % period_s
    end_s = start_s + length_s
    if end_s <= period_s:
        return [(start_s, end_s)]
    return [(start_s, period_s), (0.0, end_s - period_s)]
