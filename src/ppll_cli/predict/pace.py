"""The pace of a pipeline that has been filled, and how its stages' work overlaps. No torch."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from typing import Self

from ppll_cli.job.job import Job
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.rules import Channel, sends
from ppll_cli.pipeline.simulate import Cost, Event, Journeys, at_once, simulate

FILLED = 2
"""A pipeline's pace is taken after so many batches, over as many. Whatever instructions cost, it
does not change from the second batch on: with two slots or more in each channel the slowest stage,
or where each batch is drained the way through all of them, sets it at once."""

Times = dict[Instruction, float]
"""A number for each instruction of a stage in a batch; 0 for those that are left out."""

_Spans = list[tuple[float, float]]
"""From when to when."""


@dataclass(frozen=True)
class Steady:
    """A pipeline that has been filled.

    Attributes:
        batch_s: How long it takes from one batch to the next.
        events: For each stage, its instructions for a batch.
        peak_live: For each stage, the most forwards that waited for their backward at once.
    """

    batch_s: float
    events: list[list[Event]]
    peak_live: list[int]

    @property
    def busy_s(self) -> list[float]:
        """For each stage, how long it works for a batch."""
        return [sum(event.end_s - event.start_s for event in events) for events in self.events]

    @property
    def bubble_fraction(self) -> float:
        """Share of the stages' time in which they wait."""
        total_s = self.batch_s * len(self.events)
        return max(0.0, 1 - sum(self.busy_s) / total_s) if total_s else 0.0


class Pipeline:
    """What the stages of a job do for a training batch, over and over.

    Args:
        streams: The instructions of each stage.
        slots: How many each channel has.
    """

    def __init__(
        self, streams: Sequence[Sequence[Instruction]], slots: Mapping[Channel, int]
    ) -> None:
        self.streams, self.slots = streams, slots

    @classmethod
    def of(cls, job: Job) -> Self:
        """A job's."""
        return cls(job.streams(), {channel: room.slots for channel, room in job.channels.items()})

    def steady(self, cost: Cost, journeys: Journeys = at_once) -> Steady:
        """Run batches on a clock until the pipeline is filled."""
        filled = FILLED if journeys is at_once else max(FILLED, self._underway())
        streams = [list(stream) * 2 * filled for stream in self.streams]
        run = simulate(streams, cost, lambda channel: self.slots[channel], journeys)

        def end_s(batches: int) -> float:
            last = [batches * len(stream) - 1 for stream in self.streams]
            return max(events[n].end_s for events, n in zip(run.events, last, strict=True))

        return Steady(
            batch_s=(end_s(2 * filled) - end_s(filled)) / filled,
            events=[e[-len(s) :] for e, s in zip(run.events, self.streams, strict=True)],
            peak_live=run.peak_live,
        )

    def _underway(self) -> int:
        """Batches that a channel holds: they come in such groups where the way is long."""
        messages = Counter(
            sent[0]
            for stage, stream in enumerate(self.streams)
            for instruction in stream
            if (sent := sends(stage, instruction))
        )
        return max((ceil(self.slots[c] / count) for c, count in messages.items()), default=1)


def company(steady: Steady, limit: int, crews: Sequence[Mapping[int, int]]) -> list[Times]:
    """For each stage's instructions, how many others compute beside its workers, on the average.

    Every stage repeats its batch at the pipeline's pace, so all of them are laid on one batch's
    time, from 0 to `batch_s`, round and round. Replicas do the same at the same time, and wait for
    the one that has most beside it.

    Args:
        steady: The pipeline.
        limit: More than so many others count as so many.
        crews: For each stage, how many of its workers are on which machine.
    """
    pieces = [[_wrapped(e, steady.batch_s) for e in events] for events in steady.events]
    areas = {
        machine: _area(pieces, [crew.get(machine, 0) for crew in crews], limit, steady.batch_s)
        for machine in {machine for crew in crews for machine in crew}
    }
    result = []
    for events, stage, crew in zip(steady.events, pieces, crews, strict=True):
        crowds: Times = {}
        for event, spans in zip(events, stage, strict=True):
            if lasted_s := sum(b - a for a, b in spans):
                beside = (sum(areas[m](b) - areas[m](a) for a, b in spans) for m in crew)
                crowds[event.instruction] = max(beside) / lasted_s
        result.append(crowds)
    return result


def _area(
    pieces: Sequence[Sequence[_Spans]], workers: Sequence[int], limit: int, period_s: float
) -> Callable[[float], float]:
    """How many others compute beside a worker of a machine, summed over time from 0 on.

    Args:
        pieces: For each stage, when its instructions run.
        workers: How many each has there.
        limit: Of others.
        period_s: Of all.
    """
    changes: dict[float, int] = {0.0: 0, period_s: 0}
    for stage, crew in zip(pieces, workers, strict=True):
        if not crew:
            continue
        for start_s, end_s in (span for spans in stage for span in spans):
            changes[start_s] = changes.get(start_s, 0) + crew
            changes[end_s] = changes.get(end_s, 0) - crew
    times_s = sorted(changes)
    busy = accumulate(changes[time_s] for time_s in times_s)
    others = [min(limit, max(0, count - 1)) for count in busy]
    lengths_s = (b - a for a, b in pairwise(times_s))
    sums = [0.0, *accumulate(n * length_s for n, length_s in zip(others, lengths_s, strict=False))]

    def area(time_s: float) -> float:
        at = bisect_right(times_s, time_s) - 1
        return sums[at] + others[at] * (time_s - times_s[at])

    return area


def _wrapped(event: Event, period_s: float) -> _Spans:
    """An event's time on a clock that begins anew after each period."""
    length_s = min(event.end_s - event.start_s, period_s)
    if length_s <= 0:
        return []
    start_s = event.start_s % period_s
    end_s = start_s + length_s
    if end_s <= period_s:
        return [(start_s, end_s)]
    return [(start_s, period_s), (0.0, end_s - period_s)]
