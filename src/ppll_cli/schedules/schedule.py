"""What a schedule is, and the fragments that schedules share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ppll_cli.schedules.instructions import (
    AddNorms,
    Backward,
    FinishAverage,
    Forward,
    Instruction,
    Loss,
    Mark,
    Measure,
    NextBatch,
    ReceiveActivations,
    ReceiveGradients,
    ReceiveMark,
    ReceiveNorms,
    Release,
    SendActivations,
    SendGradients,
    SendMark,
    SendNorms,
    StartAverage,
    Step,
)


@dataclass(frozen=True)
class Place:
    """Where a stream of instructions is executed.

    Attributes:
        stage: Number of the stage, from 0.
        stages: How many stages the pipeline has.
        chunks: How many chunks the stage holds.
        microbatches: Into how many micro-batches the batch is split.
        norms: Whether the gradient norm of the whole model is needed before a step.
        replicas: How many workers hold the same stage, each with its share of every batch. What
            follows is the stream of one of them; they all have the same.
    """

    stage: int
    stages: int
    chunks: int = 1
    microbatches: int = 1
    norms: bool = False
    replicas: int = 1

    @property
    def first(self) -> bool:
        """Whether nothing comes before this stage."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether nothing comes after this stage."""
        return self.stage == self.stages - 1


class Schedule(ABC):
    """The order in which the stages work.

    Args:
        microbatches: Into how many micro-batches each batch is split, at most.

    Attributes:
        local: Modules are trained by local losses, and no gradient passes between them.
        one_stage: The whole model is on one device, whatever `gpus` says.
        splits: Whether batches can be split; else `microbatches` is 1 whatever was asked for.
    """

    local: ClassVar[bool] = False
    one_stage: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    def __init__(self, *, microbatches: int = 1) -> None:
        self.microbatches = microbatches if self.splits else 1

    @abstractmethod
    def batch(self, place: Place) -> Iterator[Instruction]:
        """The instructions of one stage for one training batch."""

    @abstractmethod
    def held(self, place: Place) -> int:
        """How many received activations the stage holds at most, each in a slot of its own."""


def take_batch(place: Place) -> Iterator[Instruction]:
    """Where batches enter the pipeline."""
    if place.first:
        yield NextBatch()


def forward(place: Place, micro_batch: int) -> Iterator[Instruction]:
    """One micro-batch through a stage whose units are one chunk."""
    if not place.first:
        yield ReceiveActivations(place.stage - 1, 0, micro_batch)
    yield Forward(0, micro_batch)
    if place.last:
        yield Loss(0, micro_batch)
    else:
        yield SendActivations(place.stage + 1, 0, micro_batch)


def backward(place: Place, micro_batch: int) -> Iterator[Instruction]:
    """One micro-batch back through a stage whose units are one chunk."""
    if not place.last:
        yield ReceiveGradients(place.stage + 1, 0, micro_batch)
    if place.replicas > 1 and micro_batch == place.microbatches - 1:
        yield StartAverage(0)
    yield Backward(0, micro_batch)
    if not place.last:
        yield Release(place.stage + 1)
    if not place.first:
        yield SendGradients(place.stage - 1, 0, micro_batch)
        yield Release(place.stage - 1)


def step(place: Place) -> Iterator[Instruction]:
    """The optimizer's step, after what is exchanged before it where that is needed.

    Replicas have the average of their gradients. The sum of squared norms travels down the
    pipeline, growing in the order of the units as it does on one stage, and the total travels back
    up.
    """
    if place.replicas > 1:
        yield FinishAverage(0)
    if place.norms:
        if not place.first:
            yield ReceiveNorms(place.stage - 1)
        yield AddNorms()
        if not place.last:
            yield SendNorms(place.stage + 1)
            yield ReceiveNorms(place.stage + 1)
        if not place.first:
            yield SendNorms(place.stage - 1)
    yield Step()


def evaluation_batch(place: Place) -> Iterator[Instruction]:
    """One evaluation batch through a stage; the same under every schedule."""
    yield from take_batch(place)
    if not place.first:
        yield ReceiveActivations(place.stage - 1, 0, 0)
    for chunk in range(place.chunks):
        yield Forward(chunk, 0)
        if chunk == place.chunks - 1 and not place.last:
            yield SendActivations(place.stage + 1, chunk, 0)
        yield Measure(chunk, 0)
    if not place.first:
        yield Release(place.stage - 1)


def pass_mark(place: Place, mark: Mark) -> Iterator[Instruction]:
    """A mark through a stage: handed on first, so that the stages act on it side by side."""
    if not place.first:
        yield ReceiveMark(place.stage - 1)
    if not place.last:
        yield SendMark(place.stage + 1)
    yield mark
