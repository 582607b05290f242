"""The pace that a pipeline reaches after few batches, and which workers compute together."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from ppll_cli.pipeline import passes
from ppll_cli.pipeline.instructions import Forward, Instruction, Loss, Step
from ppll_cli.pipeline.layout import Layout
from ppll_cli.pipeline.routes import find_routes
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.pipeline.schedules.pp import NaivePipeline
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1
from ppll_cli.pipeline.simulate import Event, Journey
from ppll_cli.pipeline.slots import slots_needed
from ppll_cli.predict.pace import Steady, mean_neighbours, steady_state
from tests.pipeline.simulated import simulated

costs_s = st.floats(0.0, 10.0)
KINDS: list[type[Schedule]] = [PPLL, GPipe, OneFOneB, NaivePipeline, Interleaved, ZeroBubbleH1]


class Reader(NamedTuple):
    """The names that a unit or a loss reads and writes."""

    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()


def streams_of(schedule: Schedule, stages: int, modules: int = 1) -> list[list[Instruction]]:
    """Return the instructions of each stage.

    Under local learning, each stage has `modules` modules.
    """
    if schedule.local:
        units = [range(n, n + 1) for n in range(stages * modules)]
        held = [range(s * modules, (s + 1) * modules) for s in range(stages)]
        layout = Layout.contiguous(units, held)
    else:
        placed = schedule.layout(stages)
        units = [range(n, n + 1) for n in range(len(placed))]
        layout = Layout.spread(units, placed)
    model = [Reader(("x",) if n else ("image",), ("x",)) for n in range(len(units))]
    ends = {module.stop - 1: [Reader(("x", "label"))] for module in layout.modules}
    routes = find_routes(layout, model, ends)
    places = [Place(stage, routes, schedule.microbatches) for stage in range(stages)]
    return [passes.training(place, schedule) for place in places]


def slots_of(streams: Sequence[Sequence[Instruction]], depth: int) -> dict[Channel, int]:
    return {channel: slots + depth for channel, slots in slots_needed(streams).items()}


@pytest.mark.slow
@given(st.data(), st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_the_pace_of_a_few_batches_is_that_of_many(
    data: st.DataObject, kind: type[Schedule], stages: int, microbatches: int, depth: int
) -> None:
    """For any costs of instructions, a few batches show the pace of a long run."""
    schedule = kind(microbatches=microbatches)
    streams = streams_of(schedule, stages, data.draw(st.integers(1, 2)))
    times = {(s, i): data.draw(costs_s) for s, stream in enumerate(streams) for i in stream}
    slots = slots_of(streams, depth)

    def cost(stage: int, instruction: Instruction) -> float:
        return times[stage, instruction]

    few, many = 5 * stages, 10 * stages
    makespans_s = [
        simulated([s * n for s in streams], cost, lambda channel: slots[channel]).makespan_s
        for n in (few, many)
    ]
    found = steady_state(streams, slots.__getitem__, cost)
    expected_s = (makespans_s[1] - makespans_s[0]) / (many - few)
    assert found.batch_s == pytest.approx(expected_s, rel=1e-6, abs=1e-6)


@pytest.mark.slow
@settings_of(deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.integers(2, 4), st.integers(1, 3), st.integers(1, 3))
def test_the_pace_is_right_if_messages_take_long(
    data: st.DataObject, kind: type[Schedule], stages: int, microbatches: int, depth: int
) -> None:
    """If messages take long, batches arrive in groups, one group after another."""
    schedule = kind(microbatches=microbatches)
    streams = streams_of(schedule, stages)
    times = {(s, i): data.draw(costs_s) for s, stream in enumerate(streams) for i in stream}
    ways = {s: Journey(data.draw(costs_s), data.draw(costs_s)) for s in range(stages)}
    slots = slots_of(streams, depth)

    def cost(stage: int, instruction: Instruction) -> float:
        return times[stage, instruction]

    def journeys(stage: int, instruction: Instruction) -> Journey:
        return ways[stage]

    few, many = 60, 120  # a group has up to 6 batches
    makespans_s = [
        simulated(
            [s * n for s in streams], cost, lambda channel: slots[channel], journeys
        ).makespan_s
        for n in (few, many)
    ]
    found = steady_state(streams, slots.__getitem__, cost, journeys)
    expected_s = (makespans_s[1] - makespans_s[0]) / (many - few)
    assert found.batch_s == pytest.approx(expected_s, rel=1e-2, abs=1e-6)


def test_the_mean_of_neighbours_is_the_average_number_of_other_computing_stages() -> None:
    """Two stages have a pace of 10 s.

    The first one works from 0 to 6 s. The second one works from 4 to 9 s and from 9 to 11 s, which
    overlaps with the next batch until 1 s.
    """
    steady = Steady(
        batch_s=10.0,
        events=[
            [Event(Forward(0, 0), 0.0, 6.0)],
            [Event(Forward(0, 0), 4.0, 9.0), Event(Loss(0, 0), 9.0, 11.0)],
        ],
        peak_live=[1, 1],
    )
    first, second = mean_neighbours(steady, 1, [{0: 1}, {0: 1}])
    assert first == {Forward(0, 0): pytest.approx((2 + 1) / 6)}
    assert second == {Forward(0, 0): pytest.approx(2 / 5), Loss(0, 0): pytest.approx(0.5)}


def test_the_mean_of_neighbours_is_at_most_the_given_number() -> None:
    """An instruction that takes no time has no entry."""
    stage = [Event(Forward(0, 0), 0.0, 1.0), Event(Step(0), 1.0, 1.0)]
    steady = Steady(batch_s=1.0, events=[list(stage) for _ in range(5)], peak_live=[1] * 5)
    here = [{0: 1}] * 5
    assert mean_neighbours(steady, 2, here) == [{Forward(0, 0): pytest.approx(2.0)}] * 5
    assert mean_neighbours(steady, 9, here) == [{Forward(0, 0): pytest.approx(4.0)}] * 5


def test_mean_neighbours_counts_only_stages_of_the_same_machine() -> None:
    """If a stage has workers on two machines, the machine with more other workers counts."""
    steady = Steady(1.0, [[Event(Forward(0, 0), 0.0, 1.0)] for _ in range(4)], [1] * 4)
    workers = [{0: 1, 1: 1}, {1: 2}, {2: 1}, {3: 3}]
    found = [means[Forward(0, 0)] for means in mean_neighbours(steady, 9, workers)]
    assert found == [2.0, 2.0, 0.0, 2.0]
