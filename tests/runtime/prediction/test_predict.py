"""Predictions against closed formulas, with costs that all differ where the formula allows it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from ppll_cli import settings
from ppll_cli.runtime.averages import BUCKET_BYTES
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.prediction import costs
from ppll_cli.runtime.prediction import predict as predicting
from ppll_cli.runtime.prediction.costs import instruction_times
from ppll_cli.runtime.prediction.interconnect import Carriers, Interconnect, Link
from ppll_cli.runtime.prediction.pace import Pipeline, Steady, company
from ppll_cli.runtime.prediction.predict import Prediction, bp_batch_s, predict
from ppll_cli.runtime.prediction.profile import Measured
from ppll_cli.runtime.prepare import assemble
from ppll_cli.runtime.subject import Subject, examine
from ppll_cli.schedules.gpipe import GPipe
from ppll_cli.schedules.instructions import Forward, Instruction, LocalUpdate, Step
from ppll_cli.schedules.one_f_one_b import OneFOneB
from ppll_cli.schedules.pp import NaivePipeline
from ppll_cli.schedules.ppll import PPLL
from ppll_cli.schedules.rules import Channel
from ppll_cli.schedules.schedule import Place, Schedule
from ppll_cli.simulate import Event, Journey, simulate
from ppll_cli.targets import make
from tests.conftest import compose_config

DATA = ["data=synthetic", "data.size=8", "data.train_samples=53", "data.test_samples=7"]
SMALL = [*DATA, "batch_size=8", "model.dim=16", "model.depth=4", "model.heads=2", "device=cpu"]
SMALL += ["threads=1"]
UNITS = 6
TOKENS = 5 * 16 * 4
"""Bytes of what crosses a cut for one sample, the label left out."""

NOTHING = Measured(0.0, 0.0, 0, 0)


@dataclass
class Source:
    """A profile whose times are given: seconds by unit, forward and backward."""

    forward_s: Sequence[float] = (1.0,) * UNITS
    backward_s: Sequence[float] = (2.0,) * UNITS
    loss: Measured = NOTHING
    copy_s: float = 0.0
    step_s: float = 0.0
    spared_s: float = 0.0
    slower: float = 1.0
    parameter_bytes: float = 16.0
    samples: int = 8
    neighbours: int = 0
    asked: list[tuple[int, int]] = field(default_factory=list)

    def at(self, samples: int, neighbours: int = 0) -> "Source":
        self.asked.append((samples, neighbours))
        share = samples / 8 * (self.slower if neighbours else 1.0)
        forward_s, backward_s = (
            [share * seconds for seconds in times] for times in (self.forward_s, self.backward_s)
        )
        loss = self.loss._replace(
            forward_s=share * self.loss.forward_s, backward_s=share * self.loss.backward_s
        )
        return Source(
            forward_s,
            backward_s,
            loss,
            self.copy_s,
            self.step_s,
            spared_s=share * self.spared_s,
            samples=samples,
        )

    def unit(self, index: int, first: bool = False) -> Measured:
        saved, backward_s = self.samples * 100 * (index + 1), self.backward_s[index]
        backward_s -= first * self.spared_s
        return Measured(self.forward_s[index], backward_s, saved, 10 * (index + 1))

    def auxiliary(self, modules: Sequence[range], module: int) -> Measured:
        return self.loss

    def copy(self, size: int) -> float:
        return self.copy_s


@cache
def config(schedule: str) -> dict[str, Any]:
    return compose_config([*SMALL, f"schedule={schedule}"])[0]


@cache
def subject() -> Subject:
    return examine(settings.parse(config("bp")))


def job(
    schedule: str,
    gpus: int,
    microbatches: int | None = None,
    modules: int | None = None,
    replicas: int = 1,
    per_machine: int | None = None,
) -> Job:
    chosen = {**config(schedule), "gpus": gpus, "replicas": replicas}
    if microbatches is not None:
        chosen["schedule"] = {**chosen["schedule"], "microbatches": microbatches}
    chosen["local"] = {**chosen["local"], "modules": modules}
    parsed = settings.parse(chosen)
    made: Schedule = make("schedule", parsed.schedule)
    devices = ("cpu",) * (replicas if made.one_stage else gpus)
    found = assemble(parsed, subject(), made, devices, None, "unused", [])[0]
    homes = tuple(n // (per_machine or gpus) for n in range(len(devices)))
    return replace(found, homes=homes)


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine on which nothing computes beside what is measured."""
    monkeypatch.setattr(predicting, "usable_cores", lambda: 1)


def batch_s(found: Prediction) -> float:
    return 8 / found.samples_per_second


DIFFERENT = Source(
    forward_s=(1.0, 2.5, 0.5, 3.0, 1.5, 0.25),
    backward_s=(2.0, 3.5, 1.25, 5.0, 2.75, 0.5),
    loss=Measured(0.125, 0.375, 40, 7),
    copy_s=0.0625,
    step_s=0.01,
)


def test_ppll_goes_at_the_pace_of_its_slowest_stage() -> None:
    """Stages 0-1, 2-3 and 4-5 (uniform): forward, backward, loss, step, and a copy but the last."""
    found = predict(job("ppll", 3), DIFFERENT)
    totals = []
    for first in (0, 2, 4):
        units = sum(DIFFERENT.forward_s[first : first + 2]) + sum(
            DIFFERENT.backward_s[first : first + 2]
        )
        params = 10 * (first + 1) + 10 * (first + 2) + 7
        totals.append(units + 0.5 + 0.01 * params + 0.0625 * (first < 4))
    assert found.stage_s == pytest.approx(totals)
    assert batch_s(found) == pytest.approx(max(totals))
    assert found.bubble_fraction == pytest.approx(1 - sum(totals) / (3 * max(totals)))


def test_a_module_makes_no_gradients_for_its_inputs() -> None:
    """Which spares its first unit something, under ll once a module; never so under bp."""
    source = Source(spared_s=0.25)
    for schedule, spared in (("bp", 0), ("pp", 0), ("ll", 3)):
        found = predict(job(schedule, 3), source)
        assert batch_s(found) == pytest.approx(3.0 * UNITS - 0.25 * spared)
    assert predict(job("ppll", 3), source).stage_s == pytest.approx([6.0 - 0.25] * 3)


@pytest.mark.parametrize("schedule", ["bp", "pp", "ll"])
def test_what_runs_one_thing_at_a_time_takes_the_sum(schedule: str) -> None:
    """Under pp an earlier stage still steps while the next batch begins behind it: never here."""
    found = predict(job(schedule, 3), DIFFERENT)
    units = sum(DIFFERENT.forward_s) + sum(DIFFERENT.backward_s)
    steps = 0.01 * 10 * (1 + 2 + 3 + 4 + 5 + 6)
    if schedule == "pp":
        # Both copies, there and back. Of the steps only the first stage's is in the way.
        assert batch_s(found) == pytest.approx(units + 0.5 + 4 * 0.0625 + 0.01 * 10 * 3)
    elif schedule == "bp":
        assert batch_s(found) == pytest.approx(units + 0.5 + steps + 0.07)
        assert bp_batch_s(UNITS, DIFFERENT) == pytest.approx(units + 0.5 + steps)
    else:
        assert batch_s(found) == pytest.approx(units + 3 * (0.5 + 0.07) + steps)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
@pytest.mark.parametrize("gpus", [2, 3, 6])
def test_gpipe_and_1f1b_fill_and_drain(schedule: str, microbatches: int, gpus: int) -> None:
    """Even stages: (M + K - 1) times a micro-batch, and a bubble of (K - 1) / (M + K - 1)."""
    source = Source()
    found = predict(job(schedule, gpus, microbatches), source)
    stage = 3.0 * UNITS / gpus / microbatches
    assert batch_s(found) == pytest.approx((microbatches + gpus - 1) * stage)
    assert found.bubble_fraction == pytest.approx((gpus - 1) / (microbatches + gpus - 1))
    assert {samples for samples, _ in source.asked} == {8 // microbatches}


def test_smaller_micro_batches_take_less() -> None:
    """8 samples in 3 parts are 3, 3 and 2."""
    made = job("gpipe", 2, 3)
    carriers = Carriers(made, Interconnect())
    (first, _) = instruction_times(made, Source().at(3), [3, 3, 2], carriers)
    assert [first[Forward(0, m)] for m in range(3)] == pytest.approx([9 / 8, 9 / 8, 6 / 8])


DOWN, UP = 8 * (TOKENS + 8), 8 * TOKENS
"""Bytes of a batch that cross a cut: activations and labels, and gradients."""


def test_a_link_carries_while_stages_compute() -> None:
    """Batch after batch; under pp each waits for its message."""
    fast, slow = (Link(DOWN / seconds, latency_s=2.0) for seconds in (4.0, 100.0))
    for link, pace_s in ((fast, 9.0), (slow, 100.0)):
        assert batch_s(predict(job("ppll", 2), Source(), Interconnect(link))) == approx(pace_s)
        way_s = DOWN / link.bytes_per_second + UP / link.bytes_per_second + 2 * 2.0
        assert batch_s(predict(job("pp", 2), Source(), Interconnect(link))) == approx(18.0 + way_s)


def test_latency_costs_where_too_few_messages_are_underway() -> None:
    """A channel of two slots, of which one is held, has two messages in 100 s and a bit."""
    made = replace(job("ppll", 2), depth=1)
    found = batch_s(predict(made, Source(), Interconnect(Link(1e12, latency_s=100.0))))
    assert 50.0 < found < 50.0 + 9.0


def approx(seconds: float) -> Any:
    return pytest.approx(seconds)


def test_what_crosses_the_cuts() -> None:
    found = predict(job("ppll", 3, per_machine=2), Source(), Interconnect(Link(10.0), Link(5.0)))
    assert [edge.bytes_per_batch for edge in found.edges] == [DOWN, DOWN]
    assert [edge.between_machines for edge in found.edges] == [False, True]
    assert batch_s(found) == approx(DOWN / 5.0)
    assert [edge.busy_fraction for edge in found.edges] == [approx(0.5), approx(1.0)]
    (edge,) = predict(job("pp", 2), Source()).edges
    assert (edge.bytes_per_batch, edge.busy_fraction) == (DOWN + UP, None)
    (edge,) = predict(
        job("pp", 2, per_machine=1), Source(), Interconnect(between=Link(1e12), bf16=True)
    ).edges
    assert edge.bytes_per_batch == DOWN // 2 + UP // 2


def test_copies_for_a_network_take_the_sender_time() -> None:
    source, link = Source(copy_s=0.5), Link(1e12)
    within = predict(job("ppll", 2), source, Interconnect(link, link))
    between = predict(job("ppll", 2, per_machine=1), source, Interconnect(link, link))
    assert [within.stage_s[0], between.stage_s[0]] == [approx(9.0), approx(9.5)]


def test_edges_that_leave_a_machine_share_its_link() -> None:
    """Two replicas of a stage on a machine, each sends half of what one would send alone."""
    link = Interconnect(between=Link(1.0))
    alone = predict(job("ppll", 2, per_machine=1), Source(), link)
    both = predict(job("ppll", 4, replicas=2, per_machine=2), Source(), link)
    assert batch_s(both) == approx(batch_s(alone))
    assert both.edges[0].bytes_per_batch == alone.edges[0].bytes_per_batch
    apart = predict(job("ppll", 4, replicas=2, per_machine=1), Source(), link)
    assert batch_s(apart) == approx(batch_s(alone) / 2)


def test_an_average_is_carried_during_the_backward() -> None:
    """Buckets of one parameter each: all but the last can hide behind a backward of 12 s."""
    params = sum(10 * (index + 1) for index in range(UNITS))
    buckets = -(-4 * params // BUCKET_BYTES)
    assert buckets == 1  # which is complete when the backward has ended, and then takes its time

    def pace_s(per_machine: int, interconnect: Interconnect) -> float:
        made = job("bp", 2, replicas=2, per_machine=per_machine)
        return batch_s(predict(made, Source(copy_s=0.25), interconnect))

    half_s = 18.0 / 2  # of a batch
    assert pace_s(2, Interconnect()) == approx(half_s + 0.25)
    link = Link(4 * params / 3.0, latency_s=0.5)
    assert pace_s(2, Interconnect(link)) == approx(half_s + 3.0 + 2 * 0.5)
    assert pace_s(1, Interconnect(Link(1e12), link)) == approx(half_s + 3.0 + 2 * 0.5)
    found = predict(job("bp", 2, replicas=2), Source())
    assert found.averaged_bytes == 4 * params
    assert predict(job("bp", 1), Source()).averaged_bytes == 0


def test_many_buckets_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 buckets, whose 3 s begin early in the backward of 6 s: one of them is left."""
    params = sum(10 * (index + 1) for index in range(UNITS))
    monkeypatch.setattr(costs, "BUCKET_BYTES", 4 * params / 100)
    link = Interconnect(Link(4 * params / 3.0))
    assert batch_s(predict(job("bp", 2, replicas=2), Source(), link)) == approx(9.0 + 0.03)
    # The last unit, whose backward takes 1 s, has 60 of 210 parameters, and a bucket 2.1.
    slow = Interconnect(Link(4 * params / 60.0))
    assert batch_s(predict(job("bp", 2, replicas=2), Source(), slow)) == approx(63.0 + 2.1 / 60)


def test_buckets_are_complete_as_the_backward_reaches_their_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of 100 parameters and one of 10; units have 10, 20, ... and take equally long."""
    monkeypatch.setattr(costs, "BUCKET_BYTES", 4 * 100)
    made = job("bp", 2, replicas=2)
    (chunk,) = made.layout.chunks(0)
    shares = costs._complete(made, chunk, Source())
    assert shares == [approx((1 + 40 / 50) / 6), approx((4 + 20 / 20) / 6), 1.0]
    link = Interconnect(Link(4 * 210 / 6.0))  # each bucket takes 2 s, the backward 6 s
    assert batch_s(predict(made, Source(), link)) == approx(9.0 - 6.0 + 5.0 + 2.0 + 2.0)


def test_stages_that_compute_side_by_side_are_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under pp nothing does; under ppll everything; under gpipe what lies between the bubbles."""
    monkeypatch.setattr(predicting, "usable_cores", lambda: 2)
    source = Source(slower=1.5)
    assert batch_s(predict(job("pp", 2), source)) == pytest.approx(18.0)
    assert batch_s(predict(job("bp", 2), source)) == pytest.approx(18.0)
    assert batch_s(predict(job("ppll", 2), source)) == pytest.approx(1.5 * 9.0)
    # M = 2, forward 1.5 s and backward 3 s a micro-batch: stage 0's first forward and its last
    # backward, and so the last stage's, have nobody beside them.
    found = batch_s(predict(job("gpipe", 2, 2), source))
    assert found == pytest.approx(1.5 + 1.5 * 1.5 + 1.5 + 3.0 + 1.5 * 3.0 + 3.0, rel=0.02)
    assert (8, 1) in source.asked
    # Two stages more than there are cores have no other neighbours than those.
    assert batch_s(predict(job("ppll", 3), source)) == pytest.approx(1.5 * 6.0)


def test_memory() -> None:
    """Units save 100, 200, ... bytes a sample and have 10, 20, ... parameters."""
    saved = [100 * (index + 1) for index in range(UNITS)]
    image, token = 3 * 8 * 8 * 4 + 8, TOKENS + 8
    source = Source(loss=Measured(0.0, 0.0, 8 * 5, 3))
    pp, gpipe, one, ll, ppll = (
        predict(job(name, 2, modules=3), source) for name in ("pp", "gpipe", "1f1b", "ll", "ppll")
    )
    assert pp.activation_bytes == [8 * (600 + image), 8 * (1500 + token) + 40]
    # Four micro-batches of two samples.
    assert gpipe.activation_bytes == [8 * (600 + image), 4 * (2 * 1500 + 40) + 8 * token]
    assert one.activation_bytes == [2 * 2 * 600 + 8 * image, 2 * 1500 + 40 + 2 * token]
    modules = [sum(saved[start : start + 2]) for start in (0, 2, 4)]
    assert ll.activation_bytes == [8 * (max(modules) + image) + 40]
    assert ppll.activation_bytes == [
        8 * (max(modules[:2]) + image) + 40,
        8 * (modules[2] + token) + 40,
    ]
    assert ppll.parameter_bytes == [16 * (10 + 20 + 30 + 40 + 6), 16 * (50 + 60 + 3)]
    assert pp.parameter_bytes == [16 * 60, 16 * (150 + 3)]


costs_s = st.floats(0.0, 10.0)
KINDS: list[type[Schedule]] = [PPLL, GPipe, OneFOneB, NaivePipeline]


def slots_of(schedule: Schedule, places: Sequence[Place], depth: int) -> dict[Channel, int]:
    slots = {}
    for stage in range(1, len(places)):
        slots[Channel(stage - 1, stage)] = schedule.held(places[stage]) + depth
        slots[Channel(stage, stage - 1)] = 1 + depth
    return slots


@given(st.data(), st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_the_pace_is_that_of_many_batches(
    data: st.DataObject, kind: type[Schedule], stages: int, microbatches: int, depth: int
) -> None:
    """Whatever instructions cost, few batches tell what a long run settles at."""
    schedule = kind(microbatches=microbatches)
    chunks = data.draw(st.integers(1, 2)) if schedule.local else 1
    places = [Place(s, stages, chunks, schedule.microbatches) for s in range(stages)]
    streams = [list(schedule.batch(place)) for place in places]
    times = {(s, i): data.draw(costs_s) for s, stream in enumerate(streams) for i in stream}
    slots = slots_of(schedule, places, depth)

    def cost(stage: int, instruction: Instruction) -> float:
        return times[stage, instruction]

    few, many = 5 * stages, 10 * stages
    makespans_s = [
        simulate([s * n for s in streams], cost, lambda channel: slots[channel]).makespan_s
        for n in (few, many)
    ]
    found = Pipeline(streams, slots).steady(cost)
    expected_s = (makespans_s[1] - makespans_s[0]) / (many - few)
    assert found.batch_s == pytest.approx(expected_s, rel=1e-6, abs=1e-6)


@settings_of(deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.integers(2, 4), st.integers(1, 3), st.integers(1, 3))
def test_the_pace_with_a_long_way_between_stages(
    data: st.DataObject, kind: type[Schedule], stages: int, microbatches: int, depth: int
) -> None:
    """Where messages are underway for long they come in groups, one after another."""
    schedule = kind(microbatches=microbatches)
    places = [Place(s, stages, 1, schedule.microbatches) for s in range(stages)]
    streams = [list(schedule.batch(place)) for place in places]
    times = {(s, i): data.draw(costs_s) for s, stream in enumerate(streams) for i in stream}
    ways = {s: Journey(data.draw(costs_s), data.draw(costs_s)) for s in range(stages)}
    slots = slots_of(schedule, places, depth)

    def cost(stage: int, instruction: Instruction) -> float:
        return times[stage, instruction]

    def journeys(stage: int, instruction: Instruction) -> Journey:
        return ways[stage]

    few, many = 60, 120  # groups of up to 6 batches
    makespans_s = [
        simulate(
            [s * n for s in streams], cost, lambda channel: slots[channel], journeys
        ).makespan_s
        for n in (few, many)
    ]
    found = Pipeline(streams, slots).steady(cost, journeys)
    expected_s = (makespans_s[1] - makespans_s[0]) / (many - few)
    assert found.batch_s == pytest.approx(expected_s, rel=1e-2, abs=1e-6)


def test_company() -> None:
    """Two stages at a pace of 10 s: 0 to 6, and 4 to 9 and from 9 on to 11, which is 1."""
    steady = Steady(
        batch_s=10.0,
        events=[
            [Event(Forward(0, 0), 0.0, 6.0)],
            [Event(Forward(0, 0), 4.0, 9.0), Event(LocalUpdate(0, 0), 9.0, 11.0)],
        ],
        peak_live=[1, 1],
    )
    first, second = company(steady, 1)
    assert first == {Forward(0, 0): pytest.approx((2 + 1) / 6)}
    assert second == {Forward(0, 0): pytest.approx(2 / 5), LocalUpdate(0, 0): pytest.approx(0.5)}


def test_company_has_a_limit() -> None:
    """What takes no time has none."""
    stage = [Event(Forward(0, 0), 0.0, 1.0), Event(Step(), 1.0, 1.0)]
    steady = Steady(batch_s=1.0, events=[list(stage) for _ in range(5)], peak_live=[1] * 5)
    assert company(steady, 2) == [{Forward(0, 0): pytest.approx(2.0)}] * 5
    assert company(steady, 9) == [{Forward(0, 0): pytest.approx(4.0)}] * 5
