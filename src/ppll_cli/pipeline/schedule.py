"""What a schedule is: the order in which each stage computes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ppll_cli.pipeline.instructions import Compute, Forward, Loss, Measure
from ppll_cli.pipeline.routes import Routes


@dataclass(frozen=True)
class Place:
    """Where a stream of instructions is executed.

    Attributes:
        stage: Number of the stage, from 0.
        routes: The chunks of the model, and what travels between them.
        microbatches: Into how many micro-batches the batch is split.
        norms: Whether the gradient norm of the whole model is needed before a step.
        replicas: How many workers hold the same stage, each with its share of every batch. They all
            execute the same stream.
    """

    stage: int
    routes: Routes
    microbatches: int = 1
    norms: bool = False
    replicas: int = 1

    @property
    def stages(self) -> int:
        """How many stages the pipeline has."""
        return self.routes.layout.stages

    @property
    def chunks(self) -> tuple[int, ...]:
        """The chunks of the stage, lowest first."""
        return self.routes.layout.of(self.stage)


class Schedule(ABC):
    """The order in which the stages compute.

    A schedule yields the instructions `Forward`, `Loss`, `Backward` (or `BackwardInput` and
    `BackwardWeight`) and `Step`. What travels between stages, and when, follows from them.

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
    def batch(self, place: Place) -> Iterator[Compute]:
        """The compute instructions of one stage for one training batch, in their order."""

    def layout(self, stages: int) -> Sequence[int]:
        """The stage of each chunk, where chunks are runs of units that a partition cuts.

        Under local learning the chunks are the modules instead, in order, several to a stage.
        """
        return range(stages)

    def evaluation(self, place: Place) -> Iterator[Forward | Measure]:
        """The same for evaluation batches, of which a stage gets several at once as micro-batches.

        There are as many as stages if a batch passes a stage more than once, else one.
        """
        for chunk in place.chunks:
            for micro_batch in range(place.microbatches):
                yield Forward(chunk, micro_batch)
                yield Measure(chunk, micro_batch)


def forward(place: Place, chunk: int, micro_batch: int) -> Iterator[Compute]:
    """A forward, and the loss where a module ends."""
    yield Forward(chunk, micro_batch)
    if place.routes.layout.chunks[chunk].ends_module:
        yield Loss(chunk, micro_batch)
