"""The simulator, compared with formulas and recurrences. All costs differ."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppll_cli.errors import DeadlockError
from ppll_cli.pipeline.instructions import (
    Backward,
    FinishAverage,
    Forward,
    Instruction,
    Loss,
    ReceiveActivations,
    SendActivations,
    SendWeights,
    StartAverage,
    Step,
)
from ppll_cli.pipeline.routes import Watch
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.schedules.bp import BackPropagation
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.ll import LocalLearning
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.pipeline.schedules.pp import NaivePipeline
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1
from ppll_cli.pipeline.simulate import Journey, peak_live, simulate
from tests.pipeline.pipelines import MANY, batches, places, routes_of, trained
from tests.pipeline.simulated import Simulation, simulated
from tests.pipeline.streams import slots_of


def computing(_: int, instruction: Instruction) -> float:
    return float(isinstance(instruction, Forward | Backward))


@pytest.mark.parametrize(("lag", "period"), [(1, 12.25), (2, 12.0), (5, 12.0)])
def test_a_stage_waits_for_the_step_of_the_stage_that_it_watches(lag: int, period: float) -> None:
    """Stage 0 takes 1 + 2 + 4 seconds, and stage 1 takes 4.5 + 6.5 + 1.

    With a lag of 1, stage 0 waits for the step of stage 1, so its forward and the copy of the
    weights add to the time of stage 1. With a lag of 2, they overlap with stage 1.
    """
    streams = trained(PPLL(), places(routes_of(PPLL(), 2, watches={0: Watch(1, lag)})))
    costs: list[dict[type, float]] = [
        {Forward: 1.0, Loss: 2.0, Backward: 4.0},
        {Forward: 4.5, Loss: 6.5, Step: 1.0},
    ]

    def cost(stage: int, instruction: Instruction) -> float:
        return costs[stage].get(type(instruction), 0.0)

    def carried(stage: int, instruction: Instruction) -> Journey | None:
        return Journey(0.25) if isinstance(instruction, SendWeights) else None

    def makespan(count: int) -> float:
        run = simulated([s * count for s in streams], cost, slots_of(streams, 1), carried)
        return run.makespan_s

    period += 1.0 * (lag == 1)
    assert makespan(9) - makespan(8) == pytest.approx(period)


def test_a_deadlock_error_says_what_each_stage_waits_for() -> None:
    with pytest.raises(DeadlockError) as caught:
        simulate(batches(GPipe(microbatches=2), 2), computing, lambda _: 1)
    assert caught.value.full == (Channel(0, 1, "activations", 1),)
    assert str(caught.value).splitlines() == [
        "the stages wait for each other:",
        "  stage 0: SendActivations(peer=1, chunk=0, micro_batch=1) waits for "
        "a free slot of the channel to stage 1; slots in use: 1",
        "  stage 1: ReceiveActivations(peer=0, chunk=1, micro_batch=1) waits for "
        "Message(kind='activations', micro_batch=1) from stage 0; nothing is there",
    ]


def test_receiving_a_message_out_of_order_deadlocks() -> None:
    sender: list[Instruction] = [Forward(0, 0), SendActivations(1, 0, 0)]
    with pytest.raises(DeadlockError) as caught:
        simulate([sender, [ReceiveActivations(0, 1, 1)]], computing, lambda _: MANY)
    assert caught.value.full == ()
    assert str(caught.value).splitlines()[1:] == [
        "  stage 0: done",
        "  stage 1: ReceiveActivations(peer=0, chunk=1, micro_batch=1) waits for "
        "Message(kind='activations', micro_batch=1) from stage 0; "
        "Message(kind='activations', micro_batch=0) is there instead",
    ]


@pytest.mark.parametrize("stages", range(1, 7))
@pytest.mark.parametrize("microbatches", range(1, 7))
def test_each_schedule_has_its_number_of_live_forwards(stages: int, microbatches: int) -> None:
    of_1f1b = [min(microbatches, stages - stage) for stage in range(stages)]
    zero_bubble = [of_1f1b[0], *[min(microbatches, stages) for _ in range(1, stages)]]
    for kind, live in (
        (GPipe, [microbatches] * stages),
        (OneFOneB, of_1f1b),
        (ZeroBubbleH1, zero_bubble),
    ):
        streams = batches(kind(microbatches=microbatches), stages, 2)
        assert [*map(peak_live, streams)] == live


@pytest.mark.parametrize("kind", [BackPropagation, LocalLearning, PPLL, NaivePipeline])
def test_bp_ll_pp_and_ppll_have_one_live_forward_per_stage(kind: type[Schedule]) -> None:
    schedule = kind(microbatches=4)
    stages = 1 if kind.one_stage else 3
    assert [*map(peak_live, batches(schedule, stages, 4))] == [1] * stages


@pytest.mark.parametrize("kind", [GPipe, OneFOneB, NaivePipeline, PPLL, Interleaved, ZeroBubbleH1])
@settings(max_examples=10)
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.integers(1, 6), st.integers(0, 3))
def test_more_slots_never_make_a_run_slower(
    kind: type[Schedule], random: Random, stages: int, microbatches: int, depth: int
) -> None:
    streams = batches(kind(microbatches=microbatches), stages, 2)
    costs = {(k, i): random.uniform(0.01, 10.0) for k in range(stages) for i in streams[k]}

    def run(depth: int) -> Simulation:
        slots = slots_of(streams, depth)
        found = simulated(streams, lambda stage, i: costs[stage, i], slots)
        assert all(peak <= slots(channel) for channel, peak in found.peak_held.items())
        return found

    assert run(depth + 1).makespan_s <= run(depth).makespan_s * (1 + 1e-12)


def test_events_do_not_include_waiting() -> None:
    first, second = simulate(batches(PPLL(), 2), computing, lambda _: 1)
    received = next(e for e in second if isinstance(e.instruction, ReceiveActivations))
    sent = next(e for e in first if isinstance(e.instruction, SendActivations))
    assert received.start_s == received.end_s == sent.end_s == 1.0
    assert [events[-1].end_s for events in (first, second)] == [2.0, 3.0]


def test_averages_of_two_chunks_share_one_connection() -> None:
    """An average waits for the computation of its chunk, and for the average before it."""
    (stream,) = batches(LocalLearning(), modules=2, replicas=2)
    journeys = {StartAverage(0): Journey(5.0, 1.0), StartAverage(1): Journey(5.0)}
    (events,) = simulate(
        [stream],
        computing,
        lambda _: MANY,
        lambda _, i: journeys[i] if isinstance(i, StartAverage) else None,
    )
    finished = {e.instruction: e.start_s for e in events}
    assert finished[StartAverage(0)] == 1.0
    assert finished[StartAverage(1)] == 3.0
    assert finished[FinishAverage(0)] == 1.0 + 5.0 + 1.0
    assert finished[FinishAverage(1)] == 1.0 + 5.0 + 5.0


def test_no_stages_take_no_time() -> None:
    assert simulated([[], []], computing, lambda _: 1).makespan_s == 0.0
