"""The simulator, compared with formulas and recurrences. All costs differ."""

from collections.abc import Callable
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppll_cli.errors import DeadlockError
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    FinishAverage,
    Forward,
    Instruction,
    Loss,
    ReceiveActivations,
    Release,
    SendActivations,
    SendGradients,
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
from ppll_cli.pipeline.simulate import Journey, Simulation, simulate
from ppll_cli.pipeline.slots import slots_needed
from tests.pipeline.pipelines import MANY, Cost, Streams, batches, places, routes_of, trained


def slots_of(streams: Streams, depth: int) -> Callable[[Channel], int]:
    """Return the number of slots of each channel, as the launcher chooses it."""
    needed = slots_needed(streams)
    return lambda channel: needed[channel] + depth


def computing(_: int, instruction: Instruction) -> float:
    return float(isinstance(instruction, Forward | Backward))


@pytest.mark.parametrize(("lag", "period"), [(1, 12.25), (2, 12.0), (5, 12.0)])
def test_a_stage_waits_for_the_step_of_the_stage_that_it_watches(lag: int, period: float) -> None:
    """Stage 0 takes 1 + 2 + 4 seconds, and stage 1 takes 4.5 + 6.5 + 1.

    With a lag of 1, stage 0 waits for the step of stage 1, so its forward and the copy of the
    weights add to the time of stage 1. With a lag of 2, they overlap with stage 1.
    """
    streams = trained(PPLL(), places(routes_of(PPLL(), 2, watches={0: Watch(1, lag)})))
    costs = ({Forward: 1.0, Loss: 2.0, Backward: 4.0}, {Forward: 4.5, Loss: 6.5, Step: 1.0})

    def cost(stage: int, instruction: Instruction) -> float:
        return costs[stage].get(type(instruction), 0.0)

    def carried(stage: int, instruction: Instruction) -> Journey | None:
        return Journey(0.25) if isinstance(instruction, SendWeights) else None

    def makespan(count: int) -> float:
        run = simulate([s * count for s in streams], cost, slots_of(streams, 1), carried)
        return run.makespan_s

    period += 1.0 * (lag == 1)
    assert makespan(9) - makespan(8) == pytest.approx(period)


def test_a_deadlock_error_says_what_each_stage_waits_for() -> None:
    with pytest.raises(DeadlockError) as caught:
        simulate(batches(GPipe(microbatches=2), 2), computing, lambda _: 1)
    assert caught.value.full == (Channel(0, 1, "activations", 1),)
    assert str(caught.value).splitlines() == [
        "every stage waits for another one:",
        "  stage 0: SendActivations(peer=1, chunk=0, micro_batch=1) waits for "
        "a free slot to stage 1; all 1 are in use",
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
        assert simulate(streams, computing, slots_of(streams, 2)).peak_live == live


@pytest.mark.parametrize("kind", [BackPropagation, LocalLearning, PPLL, NaivePipeline])
def test_bp_ll_pp_and_ppll_have_one_live_forward_per_stage(kind: type[Schedule]) -> None:
    schedule = kind(microbatches=4)
    stages = 1 if kind.one_stage else 3
    run = simulate(batches(schedule, stages, 4), computing, lambda _: MANY)
    assert run.peak_live == [1] * stages


times_s = st.floats(0.01, 10.0)
sizes = st.integers(1, 6)


def different(data: st.DataObject, count: int) -> list[float]:
    return data.draw(st.lists(times_s, min_size=count, max_size=count, unique=True))


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def ppll_cost(forward: list[float], update: list[float], send: list[float]) -> Cost:
    """Return a cost function.

    An update is loss and backward; `Release` and receives take no time.
    """

    def cost(stage: int, instruction: Instruction) -> float:
        match instruction:
            case Forward():
                return forward[stage]
            case Loss():
                return update[stage] * 0.25
            case Backward():
                return update[stage] * 0.75
            case SendActivations():
                return send[stage]
        return 0.0

    return cost


@settings(max_examples=50)
@given(st.data(), sizes, sizes)
def test_ppll_takes_the_time_of_its_formula(data: st.DataObject, stages: int, count: int) -> None:
    """The simulated time of PPLL equals the formula of its paper, for random costs.

    T is the maximum, over stages m, of the time that the slowest of the stages up to m allows.
    """
    f, u, c = (different(data, stages) for _ in range(3))
    c[-1] = 0.0  # the last stage sends no activations
    run = simulate(batches(PPLL(), stages, count), ppll_cost(f, u, c), lambda _: MANY)
    s = [sum(parts) for parts in zip(f, u, c, strict=True)]
    makespan_s = max(
        sum(f[:m]) + sum(c[:m]) + (count - 1) * max(s[: m + 1]) + s[m] for m in range(stages)
    )
    assert run.makespan_s == close(makespan_s)
    assert run.bubble_fraction == close(1 - count * sum(s) / (stages * makespan_s))
    assert run.busy_s == [close(count * stage_s) for stage_s in s]


@settings(max_examples=50)
@given(st.data(), sizes, sizes, st.integers(1, 3))
def test_ppll_waits_for_slots(data: st.DataObject, stages: int, count: int, slots: int) -> None:
    kinds = (ReceiveActivations, Forward, SendActivations, Loss, Backward, Release, Step)
    times = {kind: different(data, stages) for kind in kinds}
    run = simulate(
        batches(PPLL(), stages, count),
        lambda stage, i: times[type(i)][stage] if isinstance(i, kinds) else 0.0,
        lambda _: slots,
    )

    @cache
    def sent_s(stage: int, batch: int) -> float:
        start_s = done_s(stage, batch - 1)
        if stage > 0:
            start_s = max(start_s, sent_s(stage - 1, batch)) + times[ReceiveActivations][stage]
        end_s = start_s + times[Forward][stage]
        if stage + 1 < stages:
            free_s = released_s(stage + 1, batch - slots)
            end_s = max(end_s, free_s) + times[SendActivations][stage]
        return end_s

    def done_s(stage: int, batch: int) -> float:
        if batch < 0:
            return 0.0
        return released_s(stage, batch) + times[Step][stage]

    def released_s(stage: int, batch: int) -> float:
        if batch < 0:
            return 0.0
        update_s = times[Loss][stage] + times[Backward][stage]
        return sent_s(stage, batch) + update_s + (times[Release][stage] if stage > 0 else 0.0)

    assert run.makespan_s == close(max(done_s(stage, count - 1) for stage in range(stages)))
    assert all(peak <= slots for peak in run.peak_held.values())


def equal(forward_s: float, backward_s: float, weight_s: float = 0.0) -> Cost:
    """Return a cost function in which all chunks are equal.

    A whole backward costs as much as its halves.
    """
    costs: dict[type, float] = {
        Forward: forward_s,
        Backward: backward_s + weight_s,
        BackwardInput: backward_s,
        BackwardWeight: weight_s,
    }
    return lambda _, instruction: costs.get(type(instruction), 0.0)


@pytest.mark.parametrize("kind", [GPipe, OneFOneB])
@settings(max_examples=40)
@given(times_s, times_s, st.integers(1, 8), st.integers(1, 8), st.integers(1, 2))
def test_balanced_stages_have_the_bubble_of_the_formula(
    kind: type[Schedule], f: float, b: float, stages: int, microbatches: int, depth: int
) -> None:
    """The bubble of K stages and M micro-batches is (K - 1) / (M + K - 1) of the time."""
    streams = batches(kind(microbatches=microbatches), stages)
    run = simulate(streams, equal(f, b), slots_of(streams, depth))
    assert run.bubble_fraction == close((stages - 1) / (microbatches + stages - 1))
    assert run.makespan_s == close((microbatches + stages - 1) * (f + b))


@settings(max_examples=40)
@given(times_s, times_s, st.integers(1, 5), st.integers(0, 8), st.integers(1, 4))
def test_balanced_chunks_have_the_bubble_of_the_formula(
    f: float, b: float, stages: int, more: int, chunks: int
) -> None:
    """With enough slots, the bubble is (K - 1) / (v M + K - 1) for every M >= K."""
    microbatches = stages + more
    streams = batches(Interleaved(microbatches=microbatches, chunks=chunks), stages)
    run = simulate(streams, equal(f, b), lambda _: MANY)
    assert run.bubble_fraction == close((stages - 1) / (chunks * microbatches + stages - 1))


@settings(max_examples=40)
@given(times_s, times_s, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_whole_rounds_of_chunks_have_the_bubble_of_the_formula(
    f: float, b: float, stages: int, rounds: int, chunks: int
) -> None:
    """If M is a multiple of K, one slot more than needed is enough."""
    microbatches = stages * rounds
    streams = batches(Interleaved(microbatches=microbatches, chunks=chunks), stages)
    run = simulate(streams, equal(f, b), slots_of(streams, 1))
    assert run.bubble_fraction == close((stages - 1) / (chunks * microbatches + stages - 1))


@settings(max_examples=60)
@given(times_s, times_s, st.floats(0.01, 1.0), sizes, st.integers(1, 12), st.integers(0, 2))
def test_zero_bubble_takes_the_time_of_its_formula(
    f: float, b: float, share: float, stages: int, microbatches: int, depth: int
) -> None:
    """The time is M (F + B + W) + (K - 1) (F + B - W) for W <= F and W <= B.

    For M < K, it is (K - M) W longer. The backward of stage 0 is not split, and takes B + W.
    """
    w = share * min(f, b)
    streams = batches(ZeroBubbleH1(microbatches=microbatches), stages)
    run = simulate(streams, equal(f, b, w), slots_of(streams, depth))
    shorter_s = max(0, stages - microbatches) * w
    makespan_s = microbatches * (f + b + w) + (stages - 1) * (f + b - w) + shorter_s
    assert run.makespan_s == close(makespan_s)
    assert run.busy_s == [close(microbatches * (f + b + w))] * stages


@pytest.mark.parametrize("kind", [GPipe, OneFOneB])
@settings(max_examples=50)
@given(st.data(), sizes, sizes)
def test_unequal_costs_follow_the_recurrence(
    kind: type[Schedule], data: st.DataObject, stages: int, microbatches: int
) -> None:
    """Each micro-batch has other costs on each stage, and so has each copy."""
    schedule = kind(microbatches=microbatches)
    names = ("forward", "send forward", "backward", "send backward")
    keys = [(n, k, m) for n in names for k in range(stages) for m in range(microbatches)]
    table = dict(zip(keys, different(data, len(keys)), strict=True))
    step = different(data, stages)
    for m in range(microbatches):
        table["send forward", stages - 1, m] = table["send backward", 0, m] = 0.0

    def cost(stage: int, instruction: Instruction) -> float:
        match instruction:
            case Forward(_, m):
                return table["forward", stage, m]
            case SendActivations(_, _, m):
                return table["send forward", stage, m]
            case Backward(_, m):
                return table["backward", stage, m]
            case SendGradients(_, _, m):
                return table["send backward", stage, m]
            case Step():
                return step[stage]
        return 0.0

    @cache
    def forward_end(k: int, m: int) -> float:
        if k < 0 or m < 0:
            return 0.0
        ahead = microbatches if kind is GPipe else min(microbatches, stages - k)
        before = forward_end(k, m - 1) if m < ahead else backward_end(k, m - ahead)
        arrival = forward_end(k - 1, m)
        return max(before, arrival) + table["forward", k, m] + table["send forward", k, m]

    @cache
    def backward_end(k: int, m: int) -> float:
        ahead = microbatches if kind is GPipe else min(microbatches, stages - k)
        last = microbatches - 1
        before = forward_end(k, min(m + ahead - 1, last))
        if m > 0:
            before = max(before, backward_end(k, m - 1))
        arrival = backward_end(k + 1, m) if k + 1 < stages else 0.0
        return max(before, arrival) + table["backward", k, m] + table["send backward", k, m]

    run = simulate(batches(schedule, stages), cost, lambda _: MANY)
    expected = max(backward_end(k, microbatches - 1) + step[k] for k in range(stages))
    assert run.makespan_s == close(expected)
    total = sum(table.values()) + sum(step)
    assert run.bubble_fraction == close(1 - total / (stages * expected))


@pytest.mark.parametrize("kind", [GPipe, OneFOneB, NaivePipeline, PPLL, Interleaved, ZeroBubbleH1])
@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.integers(1, 5), sizes, st.integers(0, 3))
def test_more_slots_never_make_a_run_slower(
    kind: type[Schedule], random: Random, stages: int, microbatches: int, depth: int
) -> None:
    streams = batches(kind(microbatches=microbatches), stages, 2)
    costs = {(k, i): random.uniform(0.01, 10.0) for k in range(stages) for i in streams[k]}

    def run(depth: int) -> Simulation:
        slots = slots_of(streams, depth)
        found = simulate(streams, lambda stage, i: costs[stage, i], slots)
        assert all(peak <= slots(channel) for channel, peak in found.peak_held.items())
        return found

    assert run(depth + 1).makespan_s <= run(depth).makespan_s * (1 + 1e-12)


def test_events_do_not_include_waiting() -> None:
    run = simulate(batches(PPLL(), 2), computing, lambda _: 1)
    first, second = run.events
    received = next(e for e in second if isinstance(e.instruction, ReceiveActivations))
    sent = next(e for e in first if isinstance(e.instruction, SendActivations))
    assert received.start_s == received.end_s == sent.end_s == 1.0
    assert [events[-1].end_s for events in run.events] == [2.0, 3.0]


def test_averages_of_two_chunks_share_one_connection() -> None:
    """An average waits for the computation of its chunk, and for the average before it."""
    (stream,) = batches(LocalLearning(), modules=2, replicas=2)
    journeys = {StartAverage(0): Journey(5.0, 1.0), StartAverage(1): Journey(5.0)}
    run = simulate(
        [stream],
        computing,
        lambda _: MANY,
        lambda _, i: journeys[i] if isinstance(i, StartAverage) else None,
    )
    finished = {e.instruction: e.start_s for e in run.events[0]}
    assert finished[StartAverage(0)] == 1.0
    assert finished[StartAverage(1)] == 3.0
    assert finished[FinishAverage(0)] == 1.0 + 5.0 + 1.0
    assert finished[FinishAverage(1)] == 1.0 + 5.0 + 5.0


def test_no_stages_take_no_time() -> None:
    assert simulate([[], []], computing, lambda _: 1).makespan_s == 0.0
