"""GPipe (Huang et al., 2019)."""

from collections.abc import Iterator

from ppll_cli.schedules.instructions import Instruction
from ppll_cli.schedules.schedule import Place, Schedule, backward, forward, step, take_batch


class GPipe(Schedule):
    """All forwards, then all backwards, then one step.

    K = 3 stages, M = 3 micro-batches (F forward, B backward, S step)::

        stage 0 | F0 F1 F2 .  .  .  .  B0 B1 B2 S
        stage 1 | .  F0 F1 F2 .  .  B0 B1 B2 S  .
        stage 2 | .  .  F0 F1 F2 B0 B1 B2 S  .  .

    The paper runs the backwards in reverse order. Ours run in the order of the micro-batches, as
    in every schedule here, because the order in which gradients are summed decides their bits.
    """

    splits = True

    def batch(self, place: Place) -> Iterator[Instruction]:
        """The instructions of one stage for one training batch."""
        yield from take_batch(place)
        for micro_batch in range(place.microbatches):
            yield from forward(place, micro_batch)
        for micro_batch in range(place.microbatches):
            yield from backward(place, micro_batch)
        yield from step(place)

    def held(self, place: Place) -> int:
        """All micro-batches wait for their backward."""
        return place.microbatches
