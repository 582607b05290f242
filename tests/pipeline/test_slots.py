"""The number of slots that channels get."""

from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ppll_cli.errors import DeadlockError
from ppll_cli.pipeline import passes
from ppll_cli.pipeline.instructions import (
    End,
    Forward,
    Instruction,
    ReceiveActivations,
    Release,
    SendActivations,
)
from ppll_cli.pipeline.marks import mark
from ppll_cli.pipeline.routes import Watch
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.pipeline.schedules.pp import NaivePipeline
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1
from ppll_cli.pipeline.simulate import simulate
from ppll_cli.pipeline.slots import most, slots_needed
from tests.pipeline.pipelines import KINDS, Streams, batches, places, routes_of, trained
from tests.pipeline.simulated import simulated


def needed(schedule: Schedule, stages: int, kind: str = "activations") -> list[int]:
    """Return the numbers of slots of all channels of a kind, ordered by the receiving chunk."""
    found = slots_needed(batches(schedule, stages))
    return [found[each] for each in sorted(found, key=lambda c: c.chunk) if each.kind == kind]


@pytest.mark.parametrize("microbatches", range(1, 7))
@pytest.mark.parametrize("stages", range(2, 7))
def test_a_channel_has_a_slot_for_each_message_that_its_receiver_holds(
    stages: int, microbatches: int
) -> None:
    later = range(1, stages)
    for schedule, inputs in (
        (PPLL(), [1 for _ in later]),
        (NaivePipeline(), [1 for _ in later]),
        (GPipe(microbatches=microbatches), [microbatches for _ in later]),
        (OneFOneB(microbatches=microbatches), [min(microbatches, stages - k) for k in later]),
        # stage k computes the gradients of weights k micro-batches later than those of inputs
        (ZeroBubbleH1(microbatches=microbatches), [min(microbatches, stages) for _ in later]),
    ):
        assert needed(schedule, stages) == inputs
        count = 0 if schedule.local else stages - 1
        gradients = [1] * count
        if isinstance(schedule, ZeroBubbleH1):  # later second halves read gradients too
            gradients = [min(microbatches, 1 + k) for k in range(count)]
        assert needed(schedule, stages, "gradients") == gradients


def test_each_route_has_its_own_channel() -> None:
    """Chunks 0 and 2 are on stage 0, chunks 1 and 3 on stage 1."""
    assert {*slots_needed(batches(Interleaved(), 2, norms=True))} == {
        Channel(0, 1, "activations", 1),
        Channel(1, 0, "activations", 2),
        Channel(0, 1, "activations", 3),
        Channel(1, 0, "gradients", 0),
        Channel(0, 1, "gradients", 1),
        Channel(1, 0, "gradients", 2),
        Channel(0, 1, "norms"),
        Channel(1, 0, "norms"),
    }
    assert slots_needed(batches(Interleaved(), 1)) == {}


@pytest.mark.parametrize("lag", [1, 2, 3, 64])
@pytest.mark.parametrize("stages", [2, 3, 5])
def test_a_channel_for_weights_has_a_slot_per_batch_ahead(stages: int, lag: int) -> None:
    """Weights are sent at most two batches ahead, because the sender keeps older versions."""
    watches = {n: Watch(n + 1, lag) for n in range(stages - 1)}
    streams = trained(PPLL(), places(routes_of(PPLL(), stages, watches=watches)))
    found = slots_needed(streams)
    early = min(lag, 2)
    assert {c: n for c, n in found.items() if c.kind == "weights"} == {
        Channel(n + 1, n, "weights", n, early): early for n in range(stages - 1)
    }
    run_to_the_end(streams)


def run_to_the_end(streams: Streams) -> None:
    """Run three batches with the slots that were found, and check that no channel needs more."""
    slots = slots_needed(streams)
    run = simulated([stream * 3 for stream in streams], lambda *_: 1.0, slots.__getitem__)
    assert all(peak <= slots[channel] for channel, peak in run.peak_held.items())
    assert {*run.peak_held} == {*slots}


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 16), st.integers(1, 4))
@example(stages=4, microbatches=5, chunks=2)
def test_interleaved_runs_for_any_number_of_micro_batches(
    stages: int, microbatches: int, chunks: int
) -> None:
    """With a short last round, Megatron-LM's order deadlocks with any number of slots."""
    run_to_the_end(batches(Interleaved(microbatches=microbatches, chunks=chunks), stages))


@pytest.mark.parametrize("kind", KINDS)
def test_every_schedule_runs_with_the_slots_found(kind: type[Schedule]) -> None:
    sizes = [(1, 1), (1, 3)] if kind.one_stage else product((2, 3, 5, 8), (1, 2, 3, 5, 8))
    for stages, microbatches in sizes:
        schedule = kind(microbatches=microbatches)
        run_to_the_end(batches(schedule, stages, replicas=2, norms=not schedule.local))


@pytest.mark.parametrize("kind", KINDS)
def test_the_slots_are_enough_for_items_of_all_kinds_in_turn(kind: type[Schedule]) -> None:
    """The items are a batch, evaluation batches, a mark and a shorter batch.

    The pipeline is not drained between them.
    """
    for stages, microbatches in product((1,) if kind.one_stage else (2, 3, 4), (1, 2, 5)):
        schedule = kind(microbatches=microbatches)
        routes = routes_of(schedule, stages)
        norms = not schedule.local
        whole = trained(schedule, places(routes, schedule.microbatches, norms))
        short = trained(schedule, places(routes, min(2, schedule.microbatches), norms))
        evaluation = [passes.evaluation(p, schedule) for p in places(routes, stages)]
        at_mark = [mark(place, End(2)) for place in places(routes)]
        slots = most(slots_needed(streams) for streams in (whole, short, evaluation))
        items = zip(whole, evaluation, at_mark, short, strict=True)
        streams = [[*b, *e, *e, *m, *m, *s, *b, *m] for b, e, m, s in items]
        simulate(streams, lambda *_: 1.0, slots.__getitem__)


@pytest.mark.parametrize("kind", [GPipe, OneFOneB, NaivePipeline, PPLL, ZeroBubbleH1])
def test_one_slot_fewer_than_a_stage_holds_causes_a_deadlock(kind: type[Schedule]) -> None:
    for stages, microbatches in product((2, 3, 5), (1, 2, 5)):
        streams = batches(kind(microbatches=microbatches), stages)
        enough = slots_needed(streams)
        for narrow in enough:
            if narrow.kind == "gradients" and kind is not ZeroBubbleH1:
                continue
            with pytest.raises(DeadlockError) as caught:
                simulate(
                    streams,
                    lambda *_: 0.0,
                    lambda channel: enough[channel] - (channel == narrow),  # noqa: B023
                )
            assert narrow in caught.value.full
            report = str(caught.value).splitlines()[1:]
            assert [line.split(":")[0].strip() for line in report] == [
                f"stage {stage}" for stage in range(stages)
            ]
            assert "a free slot of the channel to stage" in report[narrow.source]
            assert all(" waits for " in line or line.endswith(": done") for line in report)


def test_a_channel_gets_more_slots_if_its_receiver_empties_another_first() -> None:
    """Stage 0 fills two channels. Stage 1 empties the second one first."""
    first, second = Channel(0, 1, "activations", 1), Channel(0, 1, "activations", 3)
    sender: list[Instruction] = [SendActivations(1, 0, m) for m in range(3)]
    sender += [SendActivations(1, 2, 0)]
    receiver: list[Instruction] = [ReceiveActivations(0, 3, 0), Release(0, 3, "activations")]
    for m in range(3):
        receiver += [ReceiveActivations(0, 1, m), Release(0, 1, "activations")]
    streams = [sender, receiver]
    assert slots_needed(streams) == {first: 3, second: 1}


def test_of_several_full_channels_the_first_stages_gets_more_slots() -> None:
    """Both stages wait for a free slot, and one more slot in either channel is enough."""
    streams = batches(Interleaved(microbatches=5, chunks=3), 2)
    first, other = Channel(0, 1, "gradients", 3), Channel(1, 0, "activations", 2)
    found = slots_needed(streams)
    assert (found[first], found[other]) == (2, 4)
    twice = [stream * 2 for stream in streams]
    with pytest.raises(DeadlockError) as caught:
        simulate(twice, lambda *_: 0.0, {**found, first: 1}.__getitem__)
    assert caught.value.full == (first, other)
    simulate(twice, lambda *_: 0.0, {**found, first: 1, other: 5}.__getitem__)


@pytest.mark.parametrize(
    "streams",
    [
        # each stage waits for the other one's message
        [
            [ReceiveActivations(1, 2, 0), Release(1, 2, "activations"), SendActivations(1, 0, 0)],
            [ReceiveActivations(0, 1, 0), Release(0, 1, "activations"), SendActivations(0, 1, 0)],
        ],
        # no stage sends
        [[Forward(0, 0)], [ReceiveActivations(0, 1, 0), Release(0, 1, "activations")]],
        # the message is for another micro-batch
        [[SendActivations(1, 0, 1)], [ReceiveActivations(0, 1, 0), Release(0, 1, "activations")]],
    ],
)
def test_streams_that_can_never_end_are_refused(streams: Streams) -> None:
    with pytest.raises(DeadlockError, match="the stages wait for each other"):
        slots_needed(streams)


def test_most_returns_the_largest_number_per_channel() -> None:
    one, other = Channel(0, 1), Channel(1, 2)
    assert most([{one: 2}, {one: 1, other: 3}, {}]) == {one: 2, other: 3}
    assert most([]) == {}
