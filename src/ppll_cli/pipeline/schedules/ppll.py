"""PPLL: pipeline parallelism based on local learning (arXiv 2411.12780)."""

from collections.abc import Iterator

from ppll_cli.pipeline.instructions import Backward, Compute, Step
from ppll_cli.pipeline.schedule import Place, Schedule, forward


class PPLL(Schedule):
    """Every stage trains its own modules, and activations only ever travel forward.

    K = 3 stages with one module each, batches 0 to 3 (F forward, B loss and backward, S step)::

        stage 0 | F0 B0 S  F1 B1 S  F2 B2 S  F3 B3 S  .  .
        stage 1 | .  F0 B0 S  F1 B1 S  F2 B2 S  F3 B3 S  .
        stage 2 | .  .  F0 B0 S  F1 B1 S  F2 B2 S  F3 B3 S

    A stage works module by module, so that one module's activations are alive at a time. What a
    module made is sent before its loss, so that the next stage starts as early as it can.
    """

    local = True

    def batch(self, place: Place) -> Iterator[Compute]:
        """The compute instructions of one stage for one training batch, in their order."""
        for chunk in place.chunks:
            yield from forward(place, chunk, 0)
            yield Backward(chunk, 0)
            yield Step(chunk)
