"""Interleaved 1F1B (Narayanan et al., 2021), generalized to any number of micro-batches."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ppll_cli.leaves.limits import Count
from ppll_cli.pipeline.instructions import Backward, Compute, Forward, Measure, Step
from ppll_cli.pipeline.schedule import Place, Schedule, forward


class Interleaved(Schedule):
    """1F1B with several chunks per stage: chunk c is on stage c mod K.

    K = 2 stages, 2 chunks per stage, M = 4 micro-batches (F forward, B backward, S step; the last
    letter is the chunk of the stage, a or b)::

        stage 0 | F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a .   B2b .   B3b B2a B3a Sa  Sb
        stage 1 | .   F0a F1a F0b B0b F1b B1b F2a B0a F3a B1a F2b B2b F3b B3b B2a B3a Sa  Sb  .

    The micro-batches are divided into rounds. A stage computes all micro-batches of a round with
    one chunk, then with the next chunk. Megatron-LM has rounds of K micro-batches, so M must be a
    multiple of K. Here, rounds are as equal as possible and have K to 2K - 1 micro-batches.

    With v chunks per stage, M >= K and enough slots, the bubble is (K - 1) / (v M + K - 1), as in
    Megatron-LM. With the default `transport.depth`, this holds if M is a multiple of K. For other M
    the bubble is up to 0.044 larger (simulated for K up to 5, v up to 4, M up to 12).

    Args:
        microbatches: Number of micro-batches per batch, M.
        chunks: Number of chunks per stage, v.
    """

    splits = True

    def __init__(self, *, microbatches: int = 1, chunks: Count = 2) -> None:
        super().__init__(microbatches=microbatches)
        self.chunks = chunks

    def layout(self, stages: int) -> Sequence[int]:
        """Return the stage of each chunk."""
        return [chunk % stages for chunk in range(self.chunks * stages)]

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield the compute instructions of one stage for one training batch, in order."""
        rounds = _rounds(place)
        forwards = [(c, m) for some in rounds for c in place.chunks for m in some]
        backwards = [(c, m) for some in rounds for c in place.chunks[::-1] for m in some]
        below = place.stages - place.stage - 1
        ahead = below
        if len(place.chunks) > 1:
            ahead = (len(place.chunks) - 1) * len(rounds[0]) + 2 * below
        ahead = min(ahead, len(forwards))
        for chunk, micro_batch in forwards[:ahead]:
            yield from forward(place, chunk, micro_batch)
        for number, (chunk, micro_batch) in enumerate(backwards, ahead):
            if number < len(forwards):
                yield from forward(place, *forwards[number])
            yield Backward(chunk, micro_batch)
        for chunk in place.chunks:
            yield Step(chunk)

    def evaluation(self, place: Place) -> Iterator[Forward | Measure]:
        """Yield the instructions of one stage for evaluation batches, one round after another."""
        for some in _rounds(place):
            for chunk in place.chunks:
                for micro_batch in some:
                    yield Forward(chunk, micro_batch)
                    yield Measure(chunk, micro_batch)


def _rounds(place: Place) -> list[range]:
    count = max(1, place.microbatches // place.stages)
    size, larger = divmod(place.microbatches, count)
    starts = [number * size + min(number, larger) for number in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]
