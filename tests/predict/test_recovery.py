"""What predictions say of `recover=stage`: copies take time, and what is kept takes memory."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from ppll_cli.config.sections import Recover
from ppll_cli.job.job import Job, WatchedUnit
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.pipeline.instructions import (
    Backward,
    Compute,
    ReceiveActivations,
    ReceiveWeights,
    Step,
)
from ppll_cli.pipeline.routes import Watch
from ppll_cli.pipeline.schedule import Place, forward
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.predict.costs import with_copies
from ppll_cli.predict.pace import Times
from ppll_cli.predict.speed import predict, recovery_bytes
from tests.predict import given
from tests.predict.given import TOKENS, Source

STATES = [3 * 4 * (10 + 20 + 30), 3 * 4 * (40 + 50 + 60)]
"""Bytes of a snapshot of each stage: parameters, and two values of AdamW for each."""

MESSAGE = 8 * (TOKENS + 8)
"""Bytes of a message; the label has 8 bytes."""


class Copies(Source):
    """A profile with which copies take a second per byte."""

    def copy(self, size: int) -> float:
        return float(size)


class Split(PPLL):
    """A user's schedule of local learning that splits each batch."""

    splits = True

    def batch(self, place: Place) -> Iterator[Compute]:
        for chunk in place.chunks:
            for micro_batch in range(place.microbatches):
                yield from forward(place, chunk, micro_batch)
                yield Backward(chunk, micro_batch)
            yield Step(chunk)


def split(job: Job) -> Job:
    chosen = {"_target_": f"{__name__}.Split", "microbatches": 2}
    return replace(job, settings=job.settings.model_copy(update={"schedule": chosen}))


def recovering(every: int, fixed: bool, modules: int | None = None) -> Job:
    made = given.job("ppll", 2, modules=modules)
    recover = Recover(name="stage", every=every if fixed else None)
    settings = made.settings.model_copy(update={"recover": recover})
    return replace(made, settings=settings, snapshot_every=every)


def all_copies(job: Job, profile: Source, sizes: list[int], times: list[Times]) -> list[Times]:
    return [with_copies(job, stage, profile, sizes, own) for stage, own in enumerate(times)]


def test_a_snapshot_is_spread_over_the_batches_until_the_next_one() -> None:
    job = recovering(4, fixed=True)
    times: list[Times] = [{Step(0): 5.0}, {Step(1): 7.0}]
    found = all_copies(job, Copies(), [8], times)
    assert found == [
        {Step(0): 5.0 + STATES[0] / 4},
        {Step(1): 7.0 + STATES[1] / 4, ReceiveActivations(0, 1, 0): MESSAGE},
    ]
    assert times == [{Step(0): 5.0}, {Step(1): 7.0}]


@pytest.mark.parametrize(("batch_s", "batches"), [(1e6, 1), (STATES[0] * 40, 3), (1.0, 16)])
def test_snapshots_are_as_frequent_as_a_hundredth_of_the_time_allows(
    batch_s: float, batches: int
) -> None:
    """They are taken every `batches` batches, at most every 16 here."""
    times: list[Times] = [{Step(0): batch_s}, {Step(1): 1.0}]
    found = all_copies(recovering(16, fixed=False), Copies(), [8], times)
    assert found[0][Step(0)] == pytest.approx(batch_s + STATES[0] / batches)


def test_each_micro_batch_is_a_message() -> None:
    """A snapshot follows the batch with which the messages are enough."""
    for every, batches in ((4, 2), (5, 3), (1, 1)):
        job = split(recovering(every, fixed=True))
        found = all_copies(job, Copies(), [4, 4], [{Step(0): 5.0}, {Step(1): 7.0}])
        assert found[0] == {Step(0): 5.0 + STATES[0] / batches}
        received: Times = {ReceiveActivations(0, 1, m): MESSAGE / 2 for m in range(2)}
        assert found[1] == received | {Step(1): 7.0 + STATES[1] / batches}
    # A message takes 20 snapshots' time, so 5 of them are enough: a snapshot after 3 batches.
    times: list[Times] = [{Step(0): STATES[0] * 40.0}, {Step(1): 1.0}]
    found = all_copies(split(recovering(16, fixed=False)), Copies(), [4, 4], times)
    assert found[0][Step(0)] == pytest.approx(STATES[0] * (40 + 1 / 3))


def test_weights_that_a_stage_receives_are_copied_as_well() -> None:
    made = recovering(4, fixed=True)
    watched = {3: WatchedUnit("3", {"weight": ValueSpec((100,), torch.float32)})}
    routes = replace(made.routes, watches={0: Watch(3, 2)})
    times: list[Times] = [{Step(0): 5.0}, {Step(1): 7.0}]
    found = all_copies(replace(made, routes=routes, watched=watched), Copies(), [8], times)
    received = [seconds for each, seconds in found[0].items() if isinstance(each, ReceiveWeights)]
    assert received == [400.0]


def test_only_stages_between_stages_of_their_machine_take_snapshots() -> None:
    """Stage 1 copies what it receives, because stage 0 compares its messages after a restart."""
    job = replace(given.job("ppll", 4), homes=(0, 0, 1, 1), snapshot_every=4)
    times: list[Times] = [{Step(stage): 1.0} for stage in range(4)]
    found = all_copies(job, Copies(), [8], times)
    assert [own[Step(stage)] > 1.0 for stage, own in enumerate(found)] == [True, False, False, True]
    copied = [any(isinstance(each, ReceiveActivations) for each in own) for own in found]
    assert copied == [False, True, False, True]
    kept = [job.kept(channel) for channel in job.channels]
    assert [messages > 0 for messages in kept] == [True, False, True]
    size = recovery_bytes(job, Copies())
    first, _, third = (room.size for room in job.channels.values())
    assert size[1:3] == [kept[0] * first, 0]
    assert size[3] > kept[2] * third


def test_a_stage_whose_weights_another_machine_reads_takes_no_snapshots() -> None:
    job = replace(given.job("ppll", 4), homes=(0, 0, 1, 1), snapshot_every=4)
    watched = {5: WatchedUnit("5", {"weight": ValueSpec((100,), torch.float32)})}
    routes = replace(job.routes, watches={1: Watch(5, 2)})
    assert job.restartable == {0, 3}
    assert replace(job, routes=routes, watched=watched).restartable == {0}


def test_modules_of_a_stage_share_its_snapshot() -> None:
    job = recovering(4, fixed=True, modules=4)
    times: list[Times] = [
        {Step(chunk): 1.0 for chunk in job.layout.of(stage)} for stage in range(2)
    ]
    found = all_copies(job, Copies(), [8], times)
    whole = [3 * 4 * (10 + 20 + 30 + 40), 3 * 4 * (50 + 60)]  # the first modules have two units
    for own, size in zip(found, whole, strict=True):
        steps = [seconds for instruction, seconds in own.items() if isinstance(instruction, Step)]
        assert steps == [1.0 + size / 4 / 2] * 2


def test_without_it_nothing_is_copied_or_kept() -> None:
    job = given.job("ppll", 2)
    times: list[Times] = [{Step(0): 5.0}, {Step(1): 7.0}]
    assert all_copies(job, Copies(), [8], times) == times
    assert recovery_bytes(job, Copies()) == [0, 0]


@pytest.mark.usefixtures("one_core")
def test_a_prediction_has_both() -> None:
    job = recovering(4, fixed=True)
    ((channel, room),) = job.channels.items()
    plain, found = (predict(each, Source(copy_s=0.5)) for each in (given.job("ppll", 2), job))
    assert plain.recovery_bytes == [0, 0]
    assert found.recovery_bytes == [2 * STATES[0], 2 * STATES[1] + job.kept(channel) * room.size]
    more = [a - b for a, b in zip(found.stage_s, plain.stage_s, strict=True)]
    assert more == pytest.approx([0.0, 0.5], abs=1e-3)  # the second stage copies what it receives
    assert found.batch_s > plain.batch_s
    assert found.activation_bytes == plain.activation_bytes
    assert found.parameter_bytes == plain.parameter_bytes
