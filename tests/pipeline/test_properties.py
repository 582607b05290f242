"""Any legal order trains the same as back-propagation on one device, and never deadlocks."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from ppll_cli.errors import DeadlockError, ScheduleError
from ppll_cli.pipeline import passes
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Compute,
    End,
    Forward,
    Instruction,
    Loss,
    Measure,
    NextBatch,
    ReadWeights,
    Step,
)
from ppll_cli.pipeline.layout import Chunk, Layout
from ppll_cli.pipeline.marks import mark
from ppll_cli.pipeline.routes import Routes, Watch, find_routes
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.simulate import simulate
from ppll_cli.pipeline.slots import most, slots_needed
from tests.pipeline.interpreter import Stage, execute, symbol
from tests.pipeline.pipelines import (
    CHAIN,
    KINDS,
    SKIP,
    Given,
    Part,
    Streams,
    places,
    routes_of,
    trained,
)

Order = dict[int, list[Compute]]


@st.composite
def any_routes(draw: st.DrawFn) -> Routes:
    """Draw units that read and write arbitrary names, in arbitrary modules, on arbitrary stages."""
    count = draw(st.integers(1, 6))
    stages = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    numbers = {stage: number for number, stage in enumerate(sorted({*stages}))}
    ends = [draw(st.booleans()) for _ in range(count - 1)] + [True]
    if draw(st.booleans()):
        ends = [False] * (count - 1) + [True]
    chunks = tuple(
        Chunk(range(n, n + 1), numbers[stages[n]], sum(ends[:n]), ends[n]) for n in range(count)
    )
    names = st.lists(st.sampled_from("abx"), max_size=3, unique=True)
    units = [Part((*draw(names), "x"), (*draw(names), "x")) for _ in range(count)]
    losses = {n: [Part((*draw(names), "label"), ())] for n in range(count) if ends[n]}
    watching = draw(st.sets(st.sampled_from([n for n in losses if n + 1 < count] or [-1])))
    lags = st.integers(1, 4)
    watches = {n: Watch(draw(st.integers(n + 1, count - 1)), draw(lags)) for n in watching - {-1}}
    return find_routes(Layout(chunks), units, losses, watches)


def needed_by(routes: Routes, count: int, split: set[int]) -> dict[Compute, list[Compute]]:
    """Return the instructions that must precede each instruction, by the rules of the design."""
    needs: dict[Compute, list[Compute]] = {}
    chunks = routes.layout.chunks
    for c, chunk in enumerate(chunks):
        kind = BackwardInput if c in split else Backward
        for m in range(count):
            parts: list[type[Forward | Loss | Backward | BackwardInput | BackwardWeight]]
            parts = [Forward, kind, *([BackwardWeight] if c in split else [])]
            parts += [Loss] if chunk.ends_module else []
            for part in parts:
                needs[part(c, m)] = [part(c, m - 1)] if m else []
            needs[Forward(c, m)] += [Forward(c - 1, m)] if c else []
            if chunk.ends_module:
                needs[Loss(c, m)] += [Forward(c, m)]
                needs[kind(c, m)] += [Loss(c, m)]
            else:
                later = BackwardInput if c + 1 in split else Backward
                needs[kind(c, m)] += [Forward(c, m), later(c + 1, m)]
            if c in split:
                needs[BackwardWeight(c, m)] += [BackwardInput(c, m)]
        needs[Step(c)] = [(BackwardWeight if c in split else Backward)(c, count - 1)]
    return needs


def in_order(routes: Routes, needs: dict[Compute, list[Compute]], random: "st.DataObject") -> Order:
    """Return the instructions of each stage, in a randomly drawn legal order."""
    order: Order = {stage: [] for stage in range(routes.layout.stages)}
    done: set[Compute] = set()
    generator = random.draw(st.randoms(use_true_random=False))
    left = dict(needs)
    while left:
        ready = [each for each, before in left.items() if done.issuperset(before)]
        following = generator.choice(ready)
        order[routes.layout.chunks[following.chunk].stage].append(following)
        done.add(following)
        del left[following]
    return order


def on_one_stage(routes: Routes, count: int, evaluated: int = 0) -> Stage:
    """Run the same chunks on one device for two batches.

    Each micro-batch runs all forwards, then all backwards.
    """
    one = tuple(Chunk(c.units, 0, c.module, c.ends_module) for c in routes.layout.chunks)
    alone = Routes(Layout(one), routes.into, routes.reads, routes.makes, routes.watches)
    batch: list[Instruction] = [NextBatch(), *map(ReadWeights, routes.watches)]
    for m in range(count):
        for c, chunk in enumerate(one):
            batch += [Forward(c, m), *([Loss(c, m)] if chunk.ends_module else [])]
        batch += [Backward(c, m) for c in reversed(range(len(one)))]
    batch += [Step(c) for c in range(len(one))]
    evaluation: list[Instruction] = [NextBatch()] if evaluated else []
    for m in range(evaluated):
        evaluation += [each for c in range(len(one)) for each in (Forward(c, m), Measure(c, m))]
    (stage,) = execute(alone, [[*batch, *evaluation, *batch]], {})
    return stage


def check(
    routes: Routes, schedule: Schedule, count: int, norms: bool, replicas: int, evaluated: int = 0
) -> None:
    """Check that two batches give the gradients of one device, with the slots that were found.

    Between the batches there is a mark and, if `evaluated` is not 0, this number of evaluation
    batches.
    """
    here = places(routes, count, norms, replicas)
    batch = trained(schedule, here)
    evaluation: Streams = [[] for _ in here]
    if evaluated:
        evaluation = [passes.evaluation(each, schedule) for each in places(routes, evaluated)]
    marks = [mark(place, End(1)) for place in here]
    streams = [
        [*own, *measured, *mark, *own]
        for own, measured, mark in zip(batch, evaluation, marks, strict=True)
    ]
    slots = most([slots_needed(batch), slots_needed(evaluation)])
    simulate(streams, lambda *_: 1.0, lambda channel: slots[channel])
    stages, alone = execute(routes, streams, slots), on_one_stage(routes, count, evaluated)
    expected, found = given_to_steps([alone]), given_to_steps(stages)
    if replicas > 1:
        expected = {c: [(symbol("average", each),) for each in own] for c, own in expected.items()}
    assert found == expected
    assert sorted(each for stage in stages for each in stage.measured) == sorted(alone.measured)
    seen = {c: steps for stage in stages for c, steps in stage.seen.items() if steps}
    assert seen == {c: [1 - w.lag, 2 - w.lag] for c, w in routes.watches.items()}
    if norms:
        of_batches = [{c: own[b] for c, own in expected.items()} for b in range(2)]
        for stage in stages:
            assert stage.norms == [each for each in of_batches for _ in stage.own]


def given_to_steps(stages: list[Stage]) -> dict[int, list[tuple[int, ...]]]:
    """Return, for each chunk, the gradients of every step."""
    found: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for stage in stages:
        for chunk, total in stage.stepped:
            found[chunk].append(total)
    return found


replicated = st.sampled_from([1, 3])


@settings(max_examples=60)
@given(st.data(), any_routes(), st.integers(1, 4), st.booleans(), replicated)
def test_any_legal_order_trains_the_same_as_one_device(
    data: st.DataObject, routes: Routes, count: int, norms: bool, replicas: int
) -> None:
    split = data.draw(st.sets(st.sampled_from(range(len(routes.into)))))
    order = in_order(routes, needed_by(routes, count, split), data)
    check(routes, Given(order, count), count, norms, replicas)


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 3),
    st.booleans(),
    replicated,
    st.sampled_from([CHAIN, SKIP]),
)
def test_our_schedules_train_the_same_as_one_device(
    kind: type[Schedule],
    stages: int,
    asked: int,
    several: int,
    norms: bool,
    replicas: int,
    arrows: Sequence[str],
) -> None:
    """Evaluation batches and a mark come between two batches, with the same slots."""
    schedule = kind(microbatches=asked)
    if isinstance(schedule, Interleaved):
        schedule = Interleaved(microbatches=asked, chunks=several)
    stages = 1 if schedule.one_stage else stages
    routes = routes_of(schedule, stages, several, arrows)
    evaluated = stages if isinstance(schedule, Interleaved) else 1
    check(routes, schedule, schedule.microbatches, norms, replicas, evaluated)


@settings(max_examples=60)
@given(st.data(), any_routes(), st.integers(1, 3), st.integers(1, 3))
def test_a_changed_order_is_refused_or_trains_the_same(
    data: st.DataObject, routes: Routes, count: int, changes: int
) -> None:
    """Some instructions are moved to another place in their stage's stream."""
    split = data.draw(st.sets(st.sampled_from(range(len(routes.into)))))
    order = in_order(routes, needed_by(routes, count, split), data)
    for _ in range(changes):
        stream = order[data.draw(st.sampled_from(sorted(order)))]
        places = st.integers(0, len(stream) - 1)
        stream.insert(data.draw(places), stream.pop(data.draw(places)))
    with suppress(ScheduleError, DeadlockError):
        check(routes, Given(order, count), count, norms=False, replicas=1)
