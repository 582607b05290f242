"""PPLL: pipeline parallelism based on local learning (arXiv 2411.12780)."""

from collections.abc import Iterator

from ppll_cli.schedules.instructions import (
    FinishAverage,
    Forward,
    Instruction,
    LocalBackward,
    LocalStep,
    LocalUpdate,
    ReceiveActivations,
    Release,
    SendActivations,
    StartAverage,
)
from ppll_cli.schedules.schedule import Place, Schedule, take_batch


class PPLL(Schedule):
    """Every stage trains its own modules, and activations only ever travel forward.

    K = 3 stages with one module each, batches 0 to 3 (F forward, U local update)::

        stage 0 | F0 U0 F1 U1 F2 U2 F3 U3 .  .
        stage 1 | .  F0 U0 F1 U1 F2 U2 F3 U3 .
        stage 2 | .  .  F0 U0 F1 U1 F2 U2 F3 U3

    A stage works module by module, so that one module's activations are alive at a time. It sends
    the last module's outputs before that module's update, so that the next stage starts as early
    as it can. Replicas of a stage average a module's gradients while they compute its backward and
    the next module.
    """

    local = True

    def batch(self, place: Place) -> Iterator[Instruction]:
        """The instructions of one stage for one training batch."""
        yield from take_batch(place)
        if not place.first:
            yield ReceiveActivations(place.stage - 1, 0, 0)
        for chunk in range(place.chunks):
            yield Forward(chunk, 0)
            if chunk == place.chunks - 1 and not place.last:
                yield SendActivations(place.stage + 1, chunk, 0)
            if place.replicas == 1:
                yield LocalUpdate(chunk, 0)
                continue
            yield StartAverage(chunk)
            yield LocalBackward(chunk, 0)
            if chunk > 0:
                yield from _averaged_step(chunk - 1)
        if not place.first:
            yield Release(place.stage - 1)
        if place.replicas > 1:
            yield from _averaged_step(place.chunks - 1)

    def held(self, place: Place) -> int:
        """The batch in hand."""
        return 1


def _averaged_step(chunk: int) -> Iterator[Instruction]:
    yield FinishAverage(chunk)
    yield LocalStep(chunk)
