"""PPLL: pipeline parallelism based on local learning (arXiv 2411.12780)."""

from collections.abc import Iterator

from ppll_cli.pipeline.instructions import Backward, Compute, Forward, Loss, Step
from ppll_cli.pipeline.schedule import Place, Schedule


class PPLL(Schedule):
    """Each stage trains its modules by local losses. Stages send activations, but no gradients.

    K = 3 stages with one module each, batches 0 to 3 (F forward, B loss and backward, S step)::

        stage 0 | F0 B0 S  F1 B1 S  F2 B2 S  F3 B3 S  .  .
        stage 1 | .  F0 B0 S  F1 B1 S  F2 B2 S  F3 B3 S  .
        stage 2 | .  .  F0 B0 S  F1 B1 S  F2 B2 S  F3 B3 S

    A stage trains its modules one after another, so that it keeps the activations of only one
    module at a time. It sends outputs before it computes the loss: the next stage starts early.
    """

    local = True

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield the compute instructions of one stage for one training batch, in order."""
        for chunk in place.chunks:
            yield Forward(chunk, 0)
            yield Loss(chunk, 0)
            yield Backward(chunk, 0)
            yield Step(chunk)
