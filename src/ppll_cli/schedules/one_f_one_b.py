"""1F1B (PipeDream-Flush; Narayanan et al., 2021)."""

from collections.abc import Iterator

from ppll_cli.schedules.instructions import Instruction
from ppll_cli.schedules.schedule import Place, Schedule, backward, forward, step, take_batch


class OneFOneB(Schedule):
    """A backward follows as soon as it can, so that few micro-batches are alive at a time.

    K = 3 stages, M = 4 micro-batches (F forward, B backward, S step)::

        stage 0 | F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3 S
        stage 1 | .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 S  .
        stage 2 | .  .  F0 B0 F1 B1 F2 B2 F3 B3 S  .  .
    """

    splits = True

    def batch(self, place: Place) -> Iterator[Instruction]:
        """The instructions of one stage for one training batch."""
        ahead = self.held(place) - 1
        yield from take_batch(place)
        for micro_batch in range(ahead):
            yield from forward(place, micro_batch)
        for micro_batch in range(ahead, place.microbatches):
            yield from forward(place, micro_batch)
            yield from backward(place, micro_batch - ahead)
        for micro_batch in range(place.microbatches - ahead, place.microbatches):
            yield from backward(place, micro_batch)
        yield from step(place)

    def held(self, place: Place) -> int:
        """One micro-batch for each stage from here to the end, as far as there are that many."""
        return min(place.microbatches, place.stages - place.stage)
