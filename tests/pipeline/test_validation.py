"""A stream that trains another network than the whole one is refused."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest

from ppll_cli.errors import DeadlockError, ScheduleError
from ppll_cli.schedules.bp import BackPropagation
from ppll_cli.schedules.gpipe import GPipe
from ppll_cli.schedules.instructions import (
    Backward,
    Forward,
    Instruction,
    LocalUpdate,
    NextBatch,
    Release,
    SendActivations,
    Step,
)
from ppll_cli.schedules.ll import LocalLearning
from ppll_cli.schedules.one_f_one_b import OneFOneB
from ppll_cli.schedules.pp import NaivePipeline
from ppll_cli.schedules.ppll import PPLL
from ppll_cli.schedules.schedule import Place, Schedule
from ppll_cli.schedules.validation import validate
from ppll_cli.simulate import simulate

MANY = 100
SCHEDULES: list[Schedule] = [
    BackPropagation(microbatches=2),
    NaivePipeline(),
    GPipe(microbatches=3),
    OneFOneB(microbatches=4),
    LocalLearning(),
    PPLL(),
]

Streams = list[list[Instruction]]


def places(schedule: Schedule) -> Iterator[list[Place]]:
    """Pipelines of one to three stages, with and without norms and replicas."""
    most = 1 if schedule.one_stage else 3
    counts = {1, schedule.microbatches}
    for stages, norms, replicas, count in product(range(1, most + 1), (0, 1), (1, 2), counts):
        if norms and schedule.local:
            continue
        chunks = [1 + (stage + 1) % 2 if schedule.local else 1 for stage in range(stages)]
        yield [Place(s, stages, chunks[s], count, bool(norms), replicas) for s in range(stages)]


def streams_of(schedule: Schedule, pipeline: Sequence[Place]) -> Streams:
    return [[*schedule.batch(place)] for place in pipeline]


def checked(schedule: Schedule, pipeline: Sequence[Place], streams: Streams) -> None:
    """All that a user's schedule has to pass before a run."""
    for place, stream in zip(pipeline, streams, strict=True):
        validate(place, schedule.local, stream)
    simulate([[*stream, *stream] for stream in streams], lambda *_: 0.0, lambda _: MANY)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_the_shipped_schedules_are_valid(schedule: Schedule) -> None:
    for pipeline in places(schedule):
        checked(schedule, pipeline, streams_of(schedule, pipeline))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_a_stream_with_an_instruction_too_few_or_twice_is_refused(schedule: Schedule) -> None:
    for pipeline in places(schedule):
        streams = streams_of(schedule, pipeline)
        for place, stream in zip(pipeline, streams, strict=True):
            for index, instruction in enumerate(stream):
                fewer = [*stream[:index], *stream[index + 1 :]]
                twice = [*stream[:index], instruction, *stream[index:]]
                for changed in (fewer, twice):
                    others = [changed if each is stream else each for each in streams]
                    with pytest.raises((ScheduleError, DeadlockError)):
                        checked(schedule, [*pipeline], others)
                    assert place.stage < len(pipeline)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_an_instruction_for_another_chunk_or_stage_or_part_is_refused(schedule: Schedule) -> None:
    """Among them PPLL that sends the first of its stage's chunks, which trained in silence."""
    for pipeline in places(schedule):
        streams = streams_of(schedule, pipeline)
        for stream in streams:
            for index, instruction in enumerate(stream):
                for other in different(instruction):
                    changed = [*stream[:index], other, *stream[index + 1 :]]
                    others = [changed if each is stream else each for each in streams]
                    with pytest.raises((ScheduleError, DeadlockError)):
                        checked(schedule, pipeline, others)


def different(instruction: Instruction) -> Iterator[Instruction]:
    """The same with another number in one place."""
    for field in fields(instruction):
        value = getattr(instruction, field.name)
        for other in (value - 1, value + 1, value + 7):
            changed: Any = {field.name: other}
            yield replace(instruction, **changed)


N, F, U = NextBatch(), Forward(0, 0), LocalUpdate(0, 0)
TWO = Place(0, 2, chunks=2)
BAD: dict[str, tuple[Place, bool, list[Any], str]] = {
    "a word": (Place(0, 1), True, ["forward"], "is told 'forward', no instruction"),
    "no chunk": (TWO, True, [N, Forward(2, 0)], "on stage 0, whose chunks are 0 to 1"),
    "below the first chunk": (TWO, True, [N, Forward(-1, 0)], "whose chunks are 0 to 1"),
    "the first chunk is sent": (
        TWO,
        True,
        [N, F, SendActivations(1, 0, 0), U, Forward(1, 0), LocalUpdate(1, 0)],
        "only SendActivations(peer=1, chunk=1) can be",
    ),
    "sent past the next stage": (
        TWO,
        True,
        [N, F, U, Forward(1, 0), SendActivations(2, 1, 0), LocalUpdate(1, 0)],
        "only SendActivations(peer=1, chunk=1) can be",
    ),
    "an untrained module": (
        TWO,
        True,
        [N, F, U, Forward(1, 0), SendActivations(1, 1, 0)],
        "never runs LocalBackward(chunk=1) of micro-batch 0",
    ),
    "a step for each part": (
        Place(0, 1, microbatches=2),
        True,
        [N, F, U, Forward(0, 1), LocalUpdate(0, 1)],
        "LocalUpdate(chunk=0, micro_batch=0) is not for stage 0",
    ),
    "parts in another order": (
        Place(0, 1, microbatches=2),
        False,
        [N, Forward(0, 1), F],
        "runs Forward(chunk=0) of the micro-batches [1, 0]",
    ),
    "a step within local learning": (Place(0, 1), True, [N, F, U, Step()], "Step() is not for"),
    "nothing to give back": (
        Place(0, 1),
        True,
        [N, F, U, Release(0)],
        "Release(peer=0) on stage 0 finds no slot to give back",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name: str) -> None:
    place, local, stream, said = BAD[name]
    with pytest.raises(ScheduleError) as refused:
        validate(place, local, stream)
    assert said in str(refused.value)


def test_a_slot_that_is_still_read_is_not_given_back() -> None:
    """The sender would refill it under the hands of the backward."""
    place = Place(1, 2)
    stream = [*PPLL().batch(place)]
    early = [stream[0], Release(0), *[each for each in stream[1:] if each != Release(0)]]
    with pytest.raises(ScheduleError, match=r"before Forward\(chunk=0, micro_batch=0\) reads it"):
        validate(place, True, early)


def test_a_step_before_a_backward_is_refused() -> None:
    place = Place(0, 1, microbatches=2)
    stream = [*GPipe(microbatches=2).batch(place)]
    early = [*stream[:-2], stream[-1], stream[-2]]
    with pytest.raises(ScheduleError) as refused:
        validate(place, False, early)
    assert str(refused.value) == f"Step() on stage 0 comes before {Backward(0, 1)}"


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_stage_may_have_many_chunks(replicas: int) -> None:
    """More than ten: chunks are numbers, and not names in an alphabet."""
    place = Place(0, 1, chunks=12, replicas=replicas)
    validate(place, True, PPLL().batch(place))


def test_a_stream_without_an_end_is_refused() -> None:
    def endless() -> Iterator[Instruction]:
        while True:
            yield NextBatch()

    with pytest.raises(ScheduleError, match="more than 400 instructions for a batch"):
        validate(Place(0, 1), True, endless())
