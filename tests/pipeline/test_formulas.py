"""Simulated times of all schedules equal the formulas of their papers, for random costs."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Forward,
    Instruction,
    Loss,
    ReceiveActivations,
    Release,
    SendActivations,
    SendGradients,
    Step,
)
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1
from tests.pipeline.pipelines import MANY, Cost, batches
from tests.pipeline.simulated import simulated
from tests.pipeline.streams import slots_of

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
    run = simulated(batches(PPLL(), stages, count), ppll_cost(f, u, c), lambda _: MANY)
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
    run = simulated(
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
    run = simulated(streams, equal(f, b), slots_of(streams, depth))
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
    run = simulated(streams, equal(f, b), lambda _: MANY)
    assert run.bubble_fraction == close((stages - 1) / (chunks * microbatches + stages - 1))


@settings(max_examples=40)
@given(times_s, times_s, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_whole_rounds_of_chunks_have_the_bubble_of_the_formula(
    f: float, b: float, stages: int, rounds: int, chunks: int
) -> None:
    """If M is a multiple of K, one slot more than needed is enough."""
    microbatches = stages * rounds
    streams = batches(Interleaved(microbatches=microbatches, chunks=chunks), stages)
    run = simulated(streams, equal(f, b), slots_of(streams, 1))
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
    run = simulated(streams, equal(f, b, w), slots_of(streams, depth))
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

    run = simulated(batches(schedule, stages), cost, lambda _: MANY)
    expected = max(backward_end(k, microbatches - 1) + step[k] for k in range(stages))
    assert run.makespan_s == close(expected)
    total = sum(table.values()) + sum(step)
    assert run.bubble_fraction == close(1 - total / (stages * expected))
