"""1F1B (PipeDream-Flush; Narayanan et al., 2021)."""

from collections.abc import Iterator

from ppll_cli.pipeline.instructions import Backward, Compute, Step
from ppll_cli.pipeline.schedule import Place, Schedule, forward


class OneFOneB(Schedule):
    """Run each backward as early as possible, so that activations of few micro-batches are kept.

    K = 3 stages, M = 4 micro-batches (F forward, B backward, S step)::

        stage 0 | F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3 S
        stage 1 | .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 S  .
        stage 2 | .  .  F0 B0 F1 B1 F2 B2 F3 B3 S  .  .
    """

    splits = True

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield the compute instructions of one stage for one training batch, in order."""
        (chunk,) = place.chunks
        count = place.microbatches
        ahead = min(count, place.stages - place.stage) - 1
        for micro_batch in range(ahead):
            yield from forward(place, chunk, micro_batch)
        for micro_batch in range(count):
            if micro_batch + ahead < count:
                yield from forward(place, chunk, micro_batch + ahead)
            yield Backward(chunk, micro_batch)
        yield Step(chunk)
