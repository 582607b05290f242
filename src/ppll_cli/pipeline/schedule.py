"""The base class of schedules. A schedule decides the order in which each stage computes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ppll_cli.pipeline.instructions import Compute, Forward, Loss, Measure
from ppll_cli.pipeline.routes import Routes


@dataclass(frozen=True)
class Place:
    """What schedules and passes need to know about a stage and its pipeline.

    Attributes:
        stage: Number of the stage, from 0.
        routes: The chunks of the model, and the tensors that are sent between them.
        microbatches: Number of micro-batches of the batch, or of a replica's share of it. In
            evaluation, the number of evaluation batches that are computed together.
        norms: Whether a step needs the gradient norm of the whole model.
        replicas: Number of workers of the stage; each trains on its share of every batch.
    """

    stage: int
    routes: Routes
    microbatches: int = 1
    norms: bool = False
    replicas: int = 1

    @property
    def stages(self) -> int:
        """Number of stages of the pipeline."""
        return self.routes.layout.stages

    @property
    def chunks(self) -> tuple[int, ...]:
        """Numbers of the stage's chunks, lowest first."""
        return self.routes.layout.of(self.stage)


class Schedule(ABC):
    """The order in which the stages compute.

    A schedule yields the instructions `Forward`, `Loss`, `Backward` (or `BackwardInput` and
    `BackwardWeight`) and `Step`. The passes (`passes.py`) add all other instructions.

    Args:
        microbatches: Number of micro-batches per batch. A batch with fewer samples has one
            micro-batch per sample.

    Attributes:
        local: Whether modules are trained by local losses, with no gradient between modules.
        one_stage: Whether the whole model is always one stage, even if `gpus` is more than 1.
        splits: Whether the schedule can split batches. If not, `microbatches` is always 1.
    """

    local: ClassVar[bool] = False
    one_stage: ClassVar[bool] = False
    splits: ClassVar[bool] = False

    def __init__(self, *, microbatches: int = 1) -> None:
        self.microbatches = microbatches if self.splits else 1

    @abstractmethod
    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield the compute instructions of one stage for one training batch, in order.

        The instructions may depend only on the options of the schedule and on `place`.
        """

    def layout(self, stages: int) -> Sequence[int]:
        """Return the stage of each chunk; the length of the result is the number of chunks.

        By default, each stage has one chunk. This method is not called under local learning: there,
        each module is a chunk, and a stage has consecutive modules.
        """
        return range(stages)

    def evaluation(self, place: Place) -> Iterator[Forward | Measure]:
        """Yield the instructions of one stage for evaluation batches that are computed together.

        Each of these batches is one micro-batch; `place.microbatches` is their number.
        """
        for chunk in place.chunks:
            for micro_batch in range(place.microbatches):
                yield Forward(chunk, micro_batch)
                yield Measure(chunk, micro_batch)


def forward(place: Place, chunk: int, micro_batch: int) -> Iterator[Compute]:
    """Yield the forward of a chunk and, if the chunk ends a module, the loss."""
    yield Forward(chunk, micro_batch)
    if place.routes.layout.chunks[chunk].ends_module:
        yield Loss(chunk, micro_batch)
