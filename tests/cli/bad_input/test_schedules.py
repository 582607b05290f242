"""A schedule of a user's own that cannot be used is refused in one line."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Compute,
    Forward,
    Measure,
    SendActivations,
    Step,
)
from ppll_cli.pipeline.schedule import Place, Schedule, forward
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.ppll import PPLL
from tests.cli.bad_input.conftest import Refused, rows


class NoSchedule:
    """A class with the constructor of a schedule, but no schedule."""

    def __init__(self, *, microbatches: int) -> None:
        self.microbatches = microbatches


class Idle(Schedule):
    """A schedule that yields no instruction."""

    def batch(self, place: Place) -> Iterator[Compute]:
        return iter(())


class Stuck(GPipe):
    """A schedule that deadlocks.

    The first stage waits for gradients that the second stage computes after all forwards.
    """

    def batch(self, place: Place) -> Iterator[Compute]:
        if place.stage:
            yield from super().batch(place)
            return
        for micro_batch in range(place.microbatches):
            yield Forward(0, micro_batch)
            yield Backward(0, micro_batch)
        yield Step(0)


class Endless(Idle):
    """A schedule whose batch never ends."""

    def batch(self, place: Place) -> Iterator[Compute]:
        while True:
            yield Step(0)


class NoChunk(PPLL):
    """A schedule that names a chunk that the stage does not have."""

    def batch(self, place: Place) -> Iterator[Compute]:
        for instruction in super().batch(place):
            yield replace(instruction, chunk=7)


class Sends(PPLL):
    """A schedule that yields a send, which only the passes may add."""

    def batch(self, place: Place) -> Iterator[Compute]:
        yield from super().batch(place)
        yield SendActivations(1, 0, 0)  # type: ignore[misc]


class Words(Idle):
    """A schedule that yields something other than instructions."""

    def batch(self, place: Place) -> Iterator[Compute]:
        yield "forward"  # type: ignore[misc]


_calls = count()


class Alternating(GPipe):
    """A schedule with two legal orders, one for every second call."""

    def batch(self, place: Place) -> Iterator[Compute]:
        if next(_calls) % 2:
            yield from super().batch(place)
            return
        (chunk,) = place.chunks
        for micro_batch in range(place.microbatches):
            yield from forward(place, chunk, micro_batch)
            yield Backward(chunk, micro_batch)
        yield Step(chunk)


class AlternatingEvaluation(Interleaved):
    """A schedule that measures after all forwards in every second call."""

    def evaluation(self, place: Place) -> Iterator[Forward | Measure]:
        found = sorted(super().evaluation(place), key=str)
        yield from (found if next(_calls) % 2 else super().evaluation(place))


class Parity(Schedule):
    """A schedule whose order of chunks depends on the number of micro-batches."""

    splits = True

    def layout(self, stages: int) -> list[int]:
        return [0, 0, 0]

    def batch(self, place: Place) -> Iterator[Compute]:
        numbers = range(place.microbatches)
        for micro_batch in numbers:
            for chunk in (0, 1, 2):
                yield from forward(place, chunk, micro_batch)
            for chunk in (2, 1, 0):
                yield BackwardInput(chunk, micro_batch)
        for chunk in (0, 1, 2) if place.microbatches % 2 else (2, 1, 0):
            for micro_batch in numbers:
                yield BackwardWeight(chunk, micro_batch)
            yield Step(chunk)


UNUSABLE = """
NoSchedule | derive it from ppll_cli.pipeline.schedule.Schedule
Idle | stage 0 never runs Step(chunk=0)
Stuck | the stages wait for each other
Stuck | there; for 8 micro-batch(es)
Alternating | batch() yielded Backward(chunk=0, micro_batch=0) for stage 0, and
AlternatingEvaluation | evaluation() yielded
Parity | in the order [0, 2, 1] for 14 micro-batch(es), and [0, 1, 2] for 15
Endless | stage 0 has more than 400 instructions for a batch
NoChunk | Forward(chunk=7, micro_batch=0) on stage 0: the chunks of this stage are 0
Sends | stage 0 runs SendActivations(peer=1, chunk=0, micro_batch=0), but
Words | stage 0 runs forward, but batch() may yield only
"""

NEEDED = {
    "Stuck": ["schedule.microbatches=8"],
    "Alternating": ["schedule.microbatches=8"],
    "Parity": ["schedule.microbatches=15", "replicas=2"],  # 29 = 15 + 14 samples
}
"""Overrides that a schedule needs so that its fault shows."""


@pytest.mark.parametrize("row", rows(UNUSABLE), ids=lambda row: row[0])
def test_a_schedule_that_cannot_be_used_is_refused(refused: Refused, row: list[str]) -> None:
    name, words = row
    refused(" ".join([*NEEDED.get(name, []), f"schedule._target_={__name__}.{name}"]), words)
