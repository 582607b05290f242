"""A schedule is refused if it would not train the whole network."""

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch

from ppll_cli.errors import ScheduleError
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Compute,
    End,
    Forward,
    Loss,
    Measure,
    NextBatch,
    Release,
    SendActivations,
    StartAverage,
    Step,
)
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.schedules.bp import BackPropagation
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1
from ppll_cli.pipeline.validation import validate, validate_evaluation
from tests.pipeline.pipelines import KINDS, pipeline, places, routes_of

every_schedule = pytest.mark.parametrize("kind", KINDS)


def streams(kind: type[Schedule]) -> Iterator[tuple[Place, list[Compute]]]:
    """Yield every stage of pipelines of one to three stages.

    Each comes with a full and a short batch.
    """
    schedule = kind(microbatches=3)
    most = 1 if schedule.one_stage else 3
    for stages, count in product(range(1, most + 1), {1, schedule.microbatches}):
        modules = [1 + (stage + 1) % 2 for stage in range(stages)]
        for place in places(routes_of(schedule, stages, modules), count):
            yield place, list(schedule.batch(place))


@every_schedule
def test_the_programs_schedules_are_valid(kind: type[Schedule]) -> None:
    for place, stream in streams(kind):
        assert validate(place, iter(stream)) == stream


@every_schedule
def test_a_missing_or_repeated_instruction_is_refused(kind: type[Schedule]) -> None:
    for place, stream in streams(kind):
        for index, instruction in enumerate(stream):
            with pytest.raises(ScheduleError):
                validate(place, [*stream[:index], *stream[index + 1 :]])
            for again in range(index, len(stream) + 1):
                with pytest.raises(ScheduleError):
                    validate(place, [*stream[:again], instruction, *stream[again:]])


@every_schedule
def test_an_instruction_for_another_chunk_or_micro_batch_is_refused(kind: type[Schedule]) -> None:
    for place, stream in streams(kind):
        for index, instruction in enumerate(stream):
            for field in fields(instruction):
                value = getattr(instruction, field.name)
                for other in (value - 1, value + 1, value + 7, -1, None, "0"):
                    if other != value:
                        changed: dict[str, Any] = {field.name: other}
                        instead = replace(instruction, **changed)
                        with pytest.raises(ScheduleError):
                            validate(place, [*stream[:index], instead, *stream[index + 1 :]])


@every_schedule
def test_an_instruction_of_another_kind_is_refused(kind: type[Schedule]) -> None:
    parts = (Forward, Loss, Backward, BackwardInput, BackwardWeight)
    for place, stream in streams(kind):
        for index, instruction in enumerate(stream):
            for part in parts:
                if isinstance(instruction, Step) or type(instruction) is part:
                    continue
                instead = part(instruction.chunk, instruction.micro_batch)
                with pytest.raises(ScheduleError):
                    validate(place, [*stream[:index], instead, *stream[index + 1 :]])


@every_schedule
def test_two_swapped_micro_batches_are_refused(kind: type[Schedule]) -> None:
    """The order of summing gradients decides their bits."""
    for place, stream in streams(kind):
        for one, other in permutations(range(len(stream)), 2):
            first, second = stream[one], stream[other]
            if one < other and type(first) is type(second) and first.chunk == second.chunk:
                swapped = list(stream)
                swapped[one], swapped[other] = second, first
                with pytest.raises(ScheduleError):
                    validate(place, swapped)


class Again(Forward):
    """A subclass of an instruction. It was counted apart, so a chunk could run twice."""


F, L, B, S = Forward(0, 0), Loss(0, 0), Backward(0, 0), Step(0)
(ALONE,) = pipeline(BackPropagation())
(TWICE,) = pipeline(BackPropagation(microbatches=2))
(BOTH,) = places(routes_of(Interleaved(), 1))  # chunks 0 and 1 on one stage, in one module
(APART,) = pipeline(PPLL(), modules=2)  # the same chunks, each a module
SECOND = pipeline(GPipe(), 3)[1]  # neither the first chunk nor the last one
THIRD = pipeline(Interleaved(), 2)[1]  # chunks 1 and 3

BAD: dict[str, tuple[Place, list[Any], str]] = {
    "a word": (ALONE, ["forward"], "stage 0 runs forward, but batch() may yield only"),
    "a class": (ALONE, [Forward], "but batch() may yield only"),
    "a subclass": (ALONE, [F, Again(0, 0)], "stage 0 runs Again(chunk=0, micro_batch=0), but"),
    "taking a batch": (ALONE, [NextBatch(), F], "stage 0 runs NextBatch(), but batch()"),
    "communication": (ALONE, [F, SendActivations(1, 0, 0)], "but batch() may yield only"),
    "a release": (ALONE, [F, Release(1, 0, "gradients")], "but batch() may yield only"),
    "an average": (ALONE, [F, StartAverage(0)], "but batch() may yield only"),
    "evaluation": (ALONE, [F, Measure(0, 0)], "but batch() may yield only"),
    "a mark": (ALONE, [End(1)], "but batch() may yield only"),
    "no chunk of the model": (BOTH, [Forward(2, 0)], "the chunks of this stage are 0, 1"),
    "below the first chunk": (BOTH, [Forward(-1, 0)], "the chunks of this stage are 0, 1"),
    "a chunk of another stage": (
        THIRD,
        [Forward(1, 0), Forward(2, 0)],
        "Forward(chunk=2, micro_batch=0) on stage 1: the chunks of this stage are 1, 3",
    ),
    "no number": (ALONE, [Forward(False, 0)], "the chunks of this stage are 0"),
    "a real number": (ALONE, [Forward(0, 0.0)], "the micro-batches are 0"),  # type: ignore[arg-type]
    "a tensor": (ALONE, [Forward(torch.tensor(0), 0)], "the chunks of this"),  # type: ignore[arg-type]
    "no micro-batch": (ALONE, [Forward(0, 1)], "on stage 0: the micro-batches are 0"),
    "true for one": (TWICE, [F, Forward(0, True)], "on stage 0: the micro-batches are 0, 1"),
    "another order": (
        TWICE,
        [Forward(0, 1)],
        "a chunk runs each Forward once, in the order of micro-batches; that of micro-batch 0 is",
    ),
    "a forward twice": (ALONE, [F, F], "in the order of micro-batches; all have run"),
    "chunks in the other order": (
        BOTH,
        [Forward(1, 0)],
        "on stage 0: Forward(chunk=0, micro_batch=0) has to come before it",
    ),
    "modules in the other order": (
        APART,
        [Forward(1, 0)],
        "on stage 0: Forward(chunk=0, micro_batch=0) has to come before it",
    ),
    "a loss before its forward": (
        ALONE,
        [L],
        "on stage 0: Forward(chunk=0, micro_batch=0) has to come before it",
    ),
    "a loss in the middle of a module": (
        BOTH,
        [F, L],
        "Loss(chunk=0, micro_batch=0) on stage 0: only chunks that end a module have a loss: [1]",
    ),
    "no loss": (ALONE, [F, B, S], "Loss(chunk=0, micro_batch=0) has to come before it"),
    "a backward before its forward": (
        SECOND,
        [Backward(1, 0)],
        "Forward(chunk=1, micro_batch=0) has",
    ),
    "an input half before its forward": (
        SECOND,
        [BackwardInput(1, 0)],
        "Forward(chunk=1, micro_batch=0) has",
    ),
    "backwards in the other order": (
        BOTH,
        [F, Forward(1, 0), Loss(1, 0), B],
        "Backward(chunk=0, micro_batch=0) on stage 0: Backward(chunk=1, micro_batch=0) has to",
    ),
    "a weight half alone": (
        SECOND,
        [Forward(1, 0), BackwardWeight(1, 0)],
        "on stage 1: BackwardInput(chunk=1, micro_batch=0) has to come before it",
    ),
    "an input half alone": (
        SECOND,
        [Forward(1, 0), BackwardInput(1, 0), Step(1)],
        "Step(chunk=1) on stage 1: BackwardWeight(chunk=1, micro_batch=0) has to come before it",
    ),
    "a whole backward after its half": (
        SECOND,
        [Forward(1, 0), BackwardInput(1, 0), Backward(1, 0)],
        "a chunk runs each Backward once",
    ),
    "a step too early": (
        TWICE,
        [F, L, B, Forward(0, 1), S],
        "Step(chunk=0) on stage 0: Backward(chunk=0, micro_batch=1) has to come before it",
    ),
    "after the step": (ALONE, [F, L, B, S, S], "Step(chunk=0) on stage 0: it comes after the chu"),
    "no step": (ALONE, [F, L, B], "stage 0 never runs Step(chunk=0)"),
    "an untrained module": (APART, [F, L, B, S], "stage 0 never runs Step(chunk=1)"),
    "nothing": (ALONE, [], "stage 0 never runs Step(chunk=0)"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name: str) -> None:
    place, stream, said = BAD[name]
    with pytest.raises(ScheduleError) as refused:
        validate(place, stream)
    assert said in str(refused.value)


@pytest.mark.parametrize("schedule", [PPLL(), Interleaved(chunks=30), ZeroBubbleH1()])
def test_a_stage_may_have_many_chunks(schedule: Schedule) -> None:
    """Chunks are numbered, not lettered, so there may be more than 26."""
    for place in pipeline(schedule, 2, 30):
        validate(place, schedule.batch(place))


def test_halves_and_whole_backwards_may_differ_between_chunks() -> None:
    chunk_0: list[Compute] = [BackwardInput(0, 0), BackwardWeight(0, 0), Step(0)]
    validate(BOTH, [F, Forward(1, 0), Loss(1, 0), Backward(1, 0), Step(1), *chunk_0])


def test_numbers_of_numpy_are_accepted() -> None:
    zero: Any = np.int64(0)
    validate(ALONE, [Forward(zero, zero), Loss(zero, zero), Backward(zero, zero), Step(zero)])


def test_a_method_that_returns_nothing_is_refused() -> None:
    nothing: Any = None
    with pytest.raises(ScheduleError, match=r"batch\(\) returned None for stage 0"):
        validate(ALONE, nothing)


def test_a_stream_without_an_end_is_refused() -> None:
    def endless() -> Iterator[Compute]:
        while True:
            yield F

    with pytest.raises(ScheduleError, match="more than 400 instructions for a batch"):
        validate(ALONE, endless())


def evaluations(kind: type[Schedule]) -> Iterator[tuple[Place, list[Forward | Measure]]]:
    """Yield stages like `streams`, for evaluation batches that are computed together."""
    schedule = kind(microbatches=3)
    most = 1 if schedule.one_stage else 2
    for stages, count in product(range(1, most + 1), (1, 2)):
        for place in places(routes_of(schedule, stages, [2] * stages), count):
            yield place, list(schedule.evaluation(place))


@every_schedule
def test_an_incomplete_or_unordered_evaluation_is_refused(kind: type[Schedule]) -> None:
    """An instruction is missing, repeated, or exchanged with one of the same kind or chunk."""
    for place, stream in evaluations(kind):
        assert validate_evaluation(place, iter(stream)) == stream
        for index, instruction in enumerate(stream):
            fewer = [*stream[:index], *stream[index + 1 :]]
            for wrong in (fewer, [*stream, instruction], [*fewer, Forward(99, 0)]):
                with pytest.raises(ScheduleError):
                    validate_evaluation(place, wrong)
            for other in range(index):
                before = stream[other]
                if type(before) is type(instruction) or before.chunk == instruction.chunk:
                    swapped = list(stream)
                    swapped[index], swapped[other] = before, instruction
                    if swapped_is_legal(place, swapped):
                        continue
                    with pytest.raises(ScheduleError):
                        validate_evaluation(place, swapped)


def swapped_is_legal(place: Place, stream: list[Forward | Measure]) -> bool:
    """Return whether each instruction comes after those that it needs.

    `validate_evaluation` counts instructions instead.
    """
    where = {each: index for index, each in enumerate(stream)}
    return all(
        index > where.get(needed, -1)
        for index, each in enumerate(stream)
        for needed in (
            replace(each, micro_batch=each.micro_batch - 1),
            Forward(each.chunk - isinstance(each, Forward), each.micro_batch),
        )
    )


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ([F], "stage 0 never runs Measure(chunk=0, micro_batch=0)"),
        ([Measure(0, 0), F], "on stage 0: Forward(chunk=0, micro_batch=0) has to come before it"),
        ([F, L, Measure(0, 0)], "evaluation() may yield only Forward and Measure"),
    ],
)
def test_the_error_says_what_is_wrong_with_an_evaluation(stream: list[Any], said: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        validate_evaluation(ALONE, stream)
    assert said in str(refused.value)
