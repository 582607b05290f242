"""GPipe (Huang et al., 2019)."""

from collections.abc import Iterator

from ppll_cli.pipeline.instructions import Backward, Compute, Step
from ppll_cli.pipeline.schedule import Place, Schedule, forward


class GPipe(Schedule):
    """Run all forwards, then all backwards, then one step.

    K = 3 stages, M = 3 micro-batches (F forward, B backward, S step)::

        stage 0 | F0 F1 F2 .  .  .  .  B0 B1 B2 S
        stage 1 | .  F0 F1 F2 .  .  B0 B1 B2 S  .
        stage 2 | .  .  F0 F1 F2 B0 B1 B2 S  .  .

    The paper runs the backwards in reverse order. Here, every schedule runs them in the order of
    the micro-batches, because the rounding of a sum of gradients depends on the order.
    """

    splits = True

    def batch(self, place: Place) -> Iterator[Compute]:  # noqa: D102
        (chunk,) = place.chunks
        for micro_batch in range(place.microbatches):
            yield from forward(place, chunk, micro_batch)
        for micro_batch in range(place.microbatches):
            yield Backward(chunk, micro_batch)
        yield Step(chunk)
