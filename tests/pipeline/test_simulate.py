"""The simulator against closed formulas and recurrences, with costs that all differ."""

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppll_cli.errors import DeadlockError, ScheduleError
from ppll_cli.schedules.bp import BackPropagation
from ppll_cli.schedules.gpipe import GPipe
from ppll_cli.schedules.instructions import (
    Backward,
    Checkpoint,
    End,
    Evaluate,
    Forward,
    Instruction,
    LocalUpdate,
    NextBatch,
    ReceiveActivations,
    Release,
    SendActivations,
    SendGradients,
    Step,
)
from ppll_cli.schedules.ll import LocalLearning
from ppll_cli.schedules.one_f_one_b import OneFOneB
from ppll_cli.schedules.pp import NaivePipeline
from ppll_cli.schedules.ppll import PPLL
from ppll_cli.schedules.rules import Channel
from ppll_cli.schedules.schedule import Place, Schedule, evaluation_batch, pass_mark
from ppll_cli.simulate import Simulation, simulate

SCHEDULES: list[type[Schedule]] = [
    BackPropagation,
    LocalLearning,
    NaivePipeline,
    GPipe,
    OneFOneB,
    PPLL,
]
MANY = 100
Cost = Callable[[int, Instruction], float]


def batches(schedule: Schedule, stages: int, count: int = 1) -> list[list[Instruction]]:
    places = [Place(stage, stages, 1, schedule.microbatches) for stage in range(stages)]
    return [[i for _ in range(count) for i in schedule.batch(place)] for place in places]


def slots_of(schedule: Schedule, stages: int, depth: int) -> Callable[[Channel], int]:
    """What the launcher gives each channel: gradients are given back at once."""

    def slots(channel: Channel) -> int:
        place = Place(channel.target, stages, 1, schedule.microbatches)
        return depth + (schedule.held(place) if channel.target > channel.source else 1)

    return slots


def computing(_: int, instruction: Instruction) -> float:
    return float(isinstance(instruction, Forward | Backward | LocalUpdate))


def a_short_run(schedule: Schedule, stage: int, stages: int) -> list[Instruction]:
    """A batch and a shorter one, with an evaluation and a checkpoint between them."""
    whole = Place(stage, stages, 1, schedule.microbatches, norms=True)
    short = Place(stage, stages, 1, min(2, schedule.microbatches), norms=True)
    return [
        *schedule.batch(whole),
        *evaluation_batch(whole),
        *evaluation_batch(whole),
        *pass_mark(whole, Evaluate("test", 1, 1)),
        *pass_mark(whole, Checkpoint(1, 1)),
        *schedule.batch(short),
        *pass_mark(whole, End(2)),
    ]


@pytest.mark.parametrize(("depth", "largest"), [(0, 6), (1, 16), (2, 16)])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_nothing_deadlocks(kind: type[Schedule], depth: int, largest: int) -> None:
    for microbatches in range(1, largest + 1) if kind.splits else [1]:
        schedule = kind(microbatches=microbatches)
        for stages in range(1, largest + 1) if not kind.one_stage else [1]:
            streams = [a_short_run(schedule, stage, stages) for stage in range(stages)]
            slots = slots_of(schedule, stages, depth)
            run = simulate(streams, computing, slots)
            assert all(peak <= slots(channel) for channel, peak in run.peak_held.items())


@pytest.mark.parametrize("kind", [GPipe, OneFOneB, NaivePipeline, PPLL])
def test_one_slot_fewer_than_a_stage_holds_deadlocks(kind: type[Schedule]) -> None:
    for stages in range(2, 9):
        for microbatches in range(1, 9) if kind.splits else [1]:
            schedule = kind(microbatches=microbatches)
            enough = slots_of(schedule, stages, depth=0)
            for narrow in (Channel(stage, stage + 1) for stage in range(stages - 1)):
                with pytest.raises(DeadlockError) as caught:
                    simulate(
                        batches(schedule, stages),
                        computing,
                        lambda channel: enough(channel) - (channel == narrow),  # noqa: B023
                    )
                report = str(caught.value).splitlines()[1:]
                assert [line.split(":")[0].strip() for line in report] == [
                    f"stage {stage}" for stage in range(stages)
                ]
                assert "a free slot to stage" in report[narrow.source]
                assert all(" waits for " in line or line.endswith(": done") for line in report)


def test_a_deadlock_report() -> None:
    schedule = GPipe(microbatches=2)
    with pytest.raises(DeadlockError) as caught:
        simulate(batches(schedule, 2), computing, lambda _: 1)
    assert str(caught.value).splitlines() == [
        "every stage waits for another one:",
        "  stage 0: SendActivations(peer=1, chunk=0, micro_batch=1) waits for "
        "a free slot to stage 1; all 1 are in use",
        "  stage 1: ReceiveActivations(peer=0, chunk=0, micro_batch=1) waits for "
        "Message(kind='activations', micro_batch=1) from stage 0; nothing is there",
    ]


def test_a_message_that_is_not_the_next_one_deadlocks() -> None:
    sender: list[Instruction] = [NextBatch(), Forward(0, 0), SendActivations(1, 0, 0)]
    with pytest.raises(DeadlockError) as caught:
        simulate([sender, [ReceiveActivations(0, 0, 1)]], computing, lambda _: MANY)
    assert str(caught.value).splitlines()[1:] == [
        "  stage 0: done",
        "  stage 1: ReceiveActivations(peer=0, chunk=0, micro_batch=1) waits for "
        "Message(kind='activations', micro_batch=1) from stage 0; "
        "Message(kind='activations', micro_batch=0) is there instead",
    ]


def test_streams_are_checked_before_they_run() -> None:
    with pytest.raises(ScheduleError, match="needs its inputs"):
        simulate([[Forward(0, 0)]], computing, lambda _: MANY)


@pytest.mark.parametrize("stages", range(1, 7))
@pytest.mark.parametrize("microbatches", range(1, 7))
def test_live_forwards_are_those_that_the_schedule_holds(stages: int, microbatches: int) -> None:
    for kind in (GPipe, OneFOneB):
        schedule = kind(microbatches=microbatches)
        run = simulate(batches(schedule, stages, 2), computing, slots_of(schedule, stages, 2))
        places = [Place(stage, stages, 1, microbatches) for stage in range(stages)]
        assert run.peak_live == [schedule.held(place) for place in places]


@pytest.mark.parametrize("kind", [BackPropagation, LocalLearning, PPLL, NaivePipeline])
def test_one_forward_is_live_at_a_time(kind: type[Schedule]) -> None:
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
    """Forward includes what an edge's copy does not: `Release` and receiving take no time."""

    def cost(stage: int, instruction: Instruction) -> float:
        match instruction:
            case Forward():
                return forward[stage]
            case LocalUpdate():
                return update[stage]
            case SendActivations():
                return send[stage]
        return 0.0

    return cost


@given(st.data(), sizes, sizes)
def test_ppll_takes_what_the_formula_says(data: st.DataObject, stages: int, count: int) -> None:
    """PAPERS.md, section 1: T = max over m of what the slowest stage up to m makes of it."""
    f, u, c = (different(data, stages) for _ in range(3))
    c[-1] = 0.0  # the last stage sends nothing
    run = simulate(batches(PPLL(), stages, count), ppll_cost(f, u, c), lambda _: MANY)
    s = [sum(parts) for parts in zip(f, u, c, strict=True)]
    makespan_s = max(
        sum(f[:m]) + sum(c[:m]) + (count - 1) * max(s[: m + 1]) + s[m] for m in range(stages)
    )
    assert run.makespan_s == close(makespan_s)
    assert run.bubble_fraction == close(1 - count * sum(s) / (stages * makespan_s))
    assert run.busy_s == [close(count * stage_s) for stage_s in s]


@given(st.data(), sizes, sizes, st.integers(1, 3))
def test_ppll_waits_for_slots(data: st.DataObject, stages: int, count: int, slots: int) -> None:
    kinds = (ReceiveActivations, Forward, SendActivations, LocalUpdate, Release)
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
            free_s = done_s(stage + 1, batch - slots)
            end_s = max(end_s, free_s) + times[SendActivations][stage]
        return end_s

    def done_s(stage: int, batch: int) -> float:
        if batch < 0:
            return 0.0
        release_s = times[Release][stage] if stage > 0 else 0.0
        return sent_s(stage, batch) + times[LocalUpdate][stage] + release_s

    assert run.makespan_s == close(max(done_s(stage, count - 1) for stage in range(stages)))
    assert all(peak <= slots for peak in run.peak_held.values())


@pytest.mark.parametrize("kind", [GPipe, OneFOneB])
@given(times_s, times_s, st.integers(1, 8), st.integers(1, 8), st.integers(1, 2))
def test_bubble_of_balanced_stages(
    kind: type[Schedule],
    forward_s: float,
    backward_s: float,
    stages: int,
    microbatches: int,
    depth: int,
) -> None:
    """PAPERS.md, section 1: (K - 1) / (M + K - 1)."""
    schedule = kind(microbatches=microbatches)
    run = simulate(
        batches(schedule, stages),
        lambda _, i: (
            forward_s if isinstance(i, Forward) else backward_s if isinstance(i, Backward) else 0.0
        ),
        slots_of(schedule, stages, depth),
    )
    assert run.bubble_fraction == close((stages - 1) / (microbatches + stages - 1))
    assert run.makespan_s == close((microbatches + stages - 1) * (forward_s + backward_s))


@pytest.mark.parametrize("kind", [GPipe, OneFOneB])
@given(st.data(), sizes, sizes)
def test_unequal_costs(
    kind: type[Schedule], data: st.DataObject, stages: int, microbatches: int
) -> None:
    """Every micro-batch costs something else on every stage, and so does every copy."""
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


@pytest.mark.parametrize("kind", [GPipe, OneFOneB, NaivePipeline, PPLL])
@settings(max_examples=50)
@given(st.data(), sizes, sizes, st.integers(0, 3))
def test_more_slots_never_make_it_slower(
    kind: type[Schedule], data: st.DataObject, stages: int, microbatches: int, depth: int
) -> None:
    schedule = kind(microbatches=microbatches)
    streams = batches(schedule, stages, 3)
    costs = dict(
        zip(
            {(k, i) for k, stream in enumerate(streams) for i in stream},
            iter(lambda: data.draw(times_s), None),
            strict=False,
        )
    )

    def run(depth: int) -> Simulation:
        slots = slots_of(schedule, stages, depth)
        found = simulate(streams, lambda stage, i: costs[stage, i], slots)
        assert all(peak <= slots(channel) for channel, peak in found.peak_held.items())
        return found

    assert run(depth + 1).makespan_s <= run(depth).makespan_s * (1 + 1e-12)


def test_waiting_is_no_part_of_an_event() -> None:
    run = simulate(batches(PPLL(), 2), computing, lambda _: 1)
    first, second = run.events
    received = next(e for e in second if isinstance(e.instruction, ReceiveActivations))
    sent = next(e for e in first if isinstance(e.instruction, SendActivations))
    assert received.start_s == received.end_s == sent.end_s == 1.0
    assert [events[-1].end_s for events in run.events] == [2.0, 3.0]


def test_no_stages_take_no_time() -> None:
    assert simulate([[], []], computing, lambda _: 1).makespan_s == 0.0
