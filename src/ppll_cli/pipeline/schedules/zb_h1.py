"""ZB-H1 (Qi et al., "Zero Bubble Pipeline Parallelism", arXiv 2401.10241)."""

from collections.abc import Iterator

from ppll_cli.pipeline.instructions import BackwardInput, BackwardWeight, Compute, Step
from ppll_cli.pipeline.schedule import Place, Schedule, forward


class ZeroBubbleH1(Schedule):
    """1F1B with split backwards: a stage computes gradients of weights instead of waiting.

    K = 3 stages, M = 4 micro-batches (F forward, B gradients of inputs, W gradients of weights, S
    step)::

        stage 0 | F0 F1 F2 .  .  B0 F3 B1 .  .  B2 .  B3 S  .
        stage 1 | .  F0 F1 .  B0 F2 B1 W0 F3 B2 W1 B3 W2 W3 S
        stage 2 | .  .  F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3 S

    Stage k computes the gradients of weights k micro-batches later than the gradients of inputs.
    With this delay, no stage keeps more micro-batches in memory than stage 0. Let F, B and W be the
    times for one micro-batch. If M >= K, W <= F and W <= B, a batch takes
    M (F + B + W) + (K - 1) (F + B - W).

    The inputs of the first stage need no gradient, so the backwards of this stage are not split.
    """

    splits = True

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield the compute instructions of one stage for one training batch, in order."""
        (chunk,) = place.chunks
        count, late = place.microbatches, place.stage
        ahead = min(count, place.stages - place.stage) - 1
        for micro_batch in range(ahead):
            yield from forward(place, chunk, micro_batch)
        for micro_batch in range(count):
            if micro_batch + ahead < count:
                yield from forward(place, chunk, micro_batch + ahead)
            yield BackwardInput(chunk, micro_batch)
            if micro_batch >= late:
                yield BackwardWeight(chunk, micro_batch - late)
        for micro_batch in range(max(0, count - late), count):
            yield BackwardWeight(chunk, micro_batch)
        yield Step(chunk)
