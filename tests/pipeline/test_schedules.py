"""Each schedule as a table, with a row for each stage and a word for each instruction.

The chunks of the model are the letters a, b, ... These are the words for micro-batch 0 and chunk a:

N             next batch
F0a L0a B0a   forward, loss and backward        I0a W0a   the halves of a backward: inputs, weights
M0a           measure                           Sa        step
x0a>1 x0a<1   send the chunk's outputs to stage 1; receive its inputs from there
g0a>1 g0a<1   send its inputs' gradients to stage 1; receive its outputs' gradients from there
xa/1 ga/1     give back a slot that holds the chunk's inputs, or output gradients, from stage 1
+a =a         start and finish the average of the chunk's gradients over the replicas
n>1 n<1 n+    send and receive the vector of squared norms; write the stage's own into it
wa>1 wa<1 wa  send weights to chunk a, which watches them; receive them; read them on the same stage
ma>1 ma<1 !   send a mark after the chunk's outputs; receive one before its inputs; act on it
"""
# ruff: noqa: E501 - the tables are as wide as they are

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppll_cli.errors import ConfigError
from ppll_cli.job.schedule import schedule_of
from ppll_cli.pipeline import marks, passes
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Checkpoint,
    End,
    Evaluate,
    Forward,
    Loss,
    Mark,
    Step,
)
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.schedules.bp import BackPropagation
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.ll import LocalLearning
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.pipeline.schedules.pp import NaivePipeline
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1
from ppll_cli.pipeline.simulate import simulate
from ppll_cli.pipeline.text import LETTERS, show
from tests.pipeline.pipelines import KINDS, MANY, batches, pipeline, places, routes_of, table, words

# fmt: off
TABLES: dict[str, tuple[Schedule, int, dict[str, Any], str]] = {
    "gpipe": (GPipe(microbatches=3), 3, {}, """
        N     F0a     x0a>1 F1a     x1a>1 F2a     x2a>1 g0a<1 B0a ga/1            g1a<1 B1a ga/1            g2a<1 B2a ga/1            Sa
        x0b<0 F0b     x0b>2 x1b<0 F1b     x1b>2 x2b<0 F2b     x2b>2 g0b<2 B0b gb/2 xb/0 g0b>0 g1b<2 B1b gb/2 xb/0 g1b>0 g2b<2 B2b gb/2 xb/0 g2b>0 Sb
        x0c<1 F0c L0c       x1c<1 F1c L1c       x2c<1 F2c L2c             B0c      xc/1 g0c>1       B1c      xc/1 g1c>1       B2c      xc/1 g2c>1 Sc
    """),
    "1f1b": (OneFOneB(microbatches=4), 3, {}, """
        N     F0a x0a>1 F1a x1a>1 F2a x2a>1 g0a<1 B0a ga/1 F3a x3a>1 g1a<1 B1a ga/1 g2a<1 B2a ga/1 g3a<1 B3a ga/1 Sa
        x0b<0 F0b x0b>2 x1b<0 F1b x1b>2 g0b<2 B0b gb/2 xb/0 g0b>0 x2b<0 F2b x2b>2 g1b<2 B1b gb/2 xb/0 g1b>0 x3b<0 F3b x3b>2 g2b<2 B2b gb/2 xb/0 g2b>0 g3b<2 B3b gb/2 xb/0 g3b>0 Sb
        x0c<1 F0c L0c B0c xc/1 g0c>1 x1c<1 F1c L1c B1c xc/1 g1c>1 x2c<1 F2c L2c B2c xc/1 g2c>1 x3c<1 F3c L3c B3c xc/1 g3c>1 Sc
    """),
    "pp": (NaivePipeline(microbatches=3), 3, {}, """
        N     F0a x0a>1 g0a<1 B0a ga/1            Sa
        x0b<0 F0b x0b>2 g0b<2 B0b gb/2 xb/0 g0b>0 Sb
        x0c<1 F0c L0c         B0c      xc/1 g0c>1 Sc
    """),
    "bp": (BackPropagation(microbatches=4), 1, {}, """
        N F0a L0a B0a F1a L1a B1a F2a L2a B2a F3a L3a B3a Sa
    """),
    "ppll": (PPLL(), 3, {}, """
        N     F0a x0a>1 L0a B0a      Sa
        x0b<0 F0b x0b>2 L0b B0b xb/0 Sb
        x0c<1 F0c       L0c B0c xc/1 Sc
    """),
    "ppll with two modules a stage": (PPLL(), 3, {"modules": 2}, """
        N     F0a L0a B0a Sa F0b x0b>1 L0b B0b      Sb
        x0c<0 F0c L0c B0c Sc F0d x0d>2 L0d B0d xc/0 Sd
        x0e<1 F0e L0e B0e Se F0f       L0f B0f xe/1 Sf
    """),
    "ll with three modules": (LocalLearning(), 1, {"modules": 3}, """
        N F0a L0a B0a Sa F0b L0b B0b Sb F0c L0c B0c Sc
    """),
    "interleaved": (Interleaved(microbatches=3), 2, {}, """
        N     F0a x0a>1 F1a   x1a>1 F2a x2a>1 x0c<1 F0c x0c>1 x1c<1 F1c x1c>1 x2c<1 F2c x2c>1 g0c<1 B0c gc/1 xc/1 g0c>1 g1c<1 B1c gc/1 xc/1 g1c>1 g2c<1 B2c gc/1 xc/1 g2c>1 g0a<1 B0a ga/1 g1a<1 B1a ga/1 g2a<1 B2a ga/1 Sa Sc
        x0b<0 F0b x0b>0 x1b<0 F1b x1b>0 x2b<0 F2b x2b>0 x0d<0 F0d L0d B0d xd/0 g0d>0 x1d<0 F1d L1d B1d xd/0 g1d>0 x2d<0 F2d L2d B2d xd/0 g2d>0 g0b<0 B0b gb/0 xb/0 g0b>0 g1b<0 B1b gb/0 xb/0 g1b>0 g2b<0 B2b gb/0 xb/0 g2b>0 Sb Sd
    """),
    "interleaved on one stage": (Interleaved(microbatches=2), 1, {}, """
        N F0a F0b L0b B0b F1a B0a F1b L1b B1b B1a Sa Sb
    """),
    "zb_h1": (ZeroBubbleH1(microbatches=3), 3, {}, """
        N     F0a x0a>1 F1a x1a>1 F2a x2a>1 g0a<1 B0a ga/1 g1a<1 B1a ga/1 g2a<1 B2a ga/1 Sa
        x0b<0 F0b x0b>2 x1b<0 F1b x1b>2 g0b<2 I0b g0b>0 x2b<0 F2b x2b>2 g1b<2 I1b g1b>0 W0b gb/2 xb/0 g2b<2 I2b g2b>0 W1b gb/2 xb/0 W2b gb/2 xb/0 Sb
        x0c<1 F0c L0c I0c g0c>1 x1c<1 F1c L1c I1c g1c>1 x2c<1 F2c L2c I2c g2c>1 W0c xc/1 W1c xc/1 W2c xc/1 Sc
    """),
    "1f1b with norms and replicas": (OneFOneB(microbatches=2), 3, {"norms": True, "replicas": 2}, """
        N     F0a x0a>1 F1a x1a>1       g0a<1 B0a ga/1                +a g1a<1 B1a ga/1            =a     n+ n>1 n<1     Sa
        x0b<0 F0b x0b>2 x1b<0 F1b x1b>2 g0b<2 B0b gb/2 xb/0 g0b>0     +b g1b<2 B1b gb/2 xb/0 g1b>0 =b n<0 n+ n>2 n<2 n>0 Sb
        x0c<1 F0c L0c B0c xc/1 g0c>1    x1c<1 F1c                     +c L1c   B1c      xc/1 g1c>1 =c n<1 n+         n>1 Sc
    """),
    "ppll with replicas": (PPLL(), 2, {"modules": 3, "replicas": 2}, """
        N     F0a +a L0a B0a F0b +b L0b B0b =a Sa F0c x0c>1 +c L0c B0c      =b Sb =c Sc
        x0d<0 F0d +d L0d B0d F0e +e L0e B0e =d Sd F0f       +f L0f B0f xd/0 =e Se =f Sf
    """),
    "interleaved with norms and replicas": (Interleaved(microbatches=1), 2, {"norms": True, "replicas": 2}, """
        N     F0a x0a>1 x0c<1 F0c x0c>1              +c g0c<1 B0c gc/1 xc/1 g0c>1 +a g0a<1 B0a ga/1            =a =c     n+ n>1 n<1 Sa Sc
        x0b<0 F0b x0b>0 x0d<0 F0d       +d L0d B0d               xd/0 g0d>0 +b g0b<0 B0b gb/0 xb/0 g0b>0 =b =d n<0 n+ n>0     Sb Sd
    """),
    "zb_h1 with norms and replicas": (ZeroBubbleH1(microbatches=2), 2, {"norms": True, "replicas": 2}, """
        N     F0a x0a>1     F1a x1a>1         g0a<1 B0a ga/1 +a g1a<1 B1a ga/1             =a     n+ n>1 n<1 Sa
        x0b<0 F0b L0b I0b g0b>0 x1b<0 F1b L1b I1b g1b>0 W0b xb/0 +b W1b xb/0               =b n<0 n+ n>0     Sb
    """),
}
# fmt: on


@pytest.mark.parametrize("name", TABLES)
def test_each_schedule_yields_the_instructions_of_its_table(name: str) -> None:
    schedule, stages, options, expected = TABLES[name]
    assert [words(stream) for stream in batches(schedule, stages, **options)] == table(expected)


def test_a_single_stage_adds_norms_without_sending() -> None:
    assert [*map(words, batches(BackPropagation(), norms=True))] == ["N F0a L0a B0a n+ Sa"]


@pytest.mark.parametrize(
    ("kind", "local", "one_stage", "microbatches"),
    [
        (BackPropagation, False, True, 5),
        (LocalLearning, True, True, 1),
        (NaivePipeline, False, False, 1),
        (GPipe, False, False, 5),
        (OneFOneB, False, False, 5),
        (Interleaved, False, False, 5),
        (ZeroBubbleH1, False, False, 5),
        (PPLL, True, False, 1),
    ],
)
def test_schedules_have_the_expected_properties(
    kind: type[Schedule], local: bool, one_stage: bool, microbatches: int
) -> None:
    schedule = kind(microbatches=5)
    assert (schedule.local, schedule.one_stage) == (local, one_stage)
    assert schedule.microbatches == microbatches
    several = [0, 1, 2, 0, 1, 2] if kind is Interleaved else [0, 1, 2]
    assert [*schedule.layout(3)] == several


def test_interleaved_has_the_given_number_of_chunks_per_stage() -> None:
    assert Interleaved(chunks=3).layout(2) == [0, 1, 0, 1, 0, 1]
    streams = batches(Interleaved(microbatches=2, chunks=3), 1)
    assert [*map(words, streams)] == [
        "N F0a F0b F0c L0c B0c F1a B0b F1b B0a F1c L1c B1c B1b B1a Sa Sb Sc"
    ]


def test_interleaved_needs_a_chunk_per_stage() -> None:
    path = f"{Interleaved.__module__}.{Interleaved.__name__}"
    with pytest.raises(ConfigError, match=r"^schedule\.chunks=0: must be greater than or equal"):
        schedule_of({"_target_": path, "chunks": 0})


sizes = st.integers(1, 6)


@settings(max_examples=50)
@given(st.sampled_from(KINDS), sizes, st.integers(1, 12), st.integers(1, 3))
def test_every_schedule_keeps_the_order_of_micro_batches(
    kind: type[Schedule], stages: int, asked: int, modules: int
) -> None:
    """The order of summing gradients decides their bits."""
    schedule = kind(microbatches=asked)
    for place in pipeline(schedule, 1 if kind.one_stage else stages, modules):
        stream = list(schedule.batch(place))
        for chunk in place.chunks:
            own = [each for each in stream if each.chunk == chunk]
            for part in (Forward, Loss, Backward, BackwardInput, BackwardWeight):
                found = [each.micro_batch for each in own if isinstance(each, part)]
                assert found in ([], [*range(schedule.microbatches)])
            assert own[-1] == Step(chunk)


@pytest.mark.parametrize("kind", [BackPropagation, NaivePipeline, GPipe, OneFOneB, ZeroBubbleH1])
def test_a_chain_is_evaluated_stage_by_stage(kind: type[Schedule]) -> None:
    found = [words(passes.evaluation(place, kind())) for place in places(routes_of(kind(), 3))]
    assert found == table("""
        N     F0a x0a>1 M0a
        x0b<0 F0b x0b>2 M0b xb/0
        x0c<1 F0c       M0c xc/1
    """)


def test_each_module_is_evaluated() -> None:
    """The next module's loss reads a name that this module only passes on."""
    found = [words(passes.evaluation(place, PPLL())) for place in pipeline(PPLL(), 2, 2)]
    assert found == table("""
        N     F0a M0a F0b x0b>1 M0b
        x0c<0 F0c M0c F0d       M0d xc/0
    """)


def test_interleaved_evaluates_several_batches_together() -> None:
    schedule = Interleaved()
    for count, expected in {
        1: """
            N     F0a x0a>1 M0a      x0c<1 F0c x0c>1 M0c xc/1
            x0b<0 F0b x0b>0 M0b xb/0 x0d<0 F0d       M0d xd/0
        """,
        2: """
            N     F0a x0a>1 M0a      F1a   x1a>1     M1a            x0c<1 F0c x0c>1 M0c xc/1 x1c<1 F1c x1c>1 M1c xc/1
            x0b<0 F0b x0b>0 M0b xb/0 x1b<0 F1b x1b>0 M1b xb/0 x0d<0 F0d       M0d xd/0 x1d<0 F1d       M1d xd/0
        """,
    }.items():
        found = [
            passes.evaluation(place, schedule) for place in places(routes_of(schedule, 2), count)
        ]
        assert [*map(words, found)] == table(expected)


@pytest.mark.parametrize("mark", [Evaluate("test", 7, 1), Checkpoint(7, 1), End(7)])
def test_a_mark_is_sent_on_before_a_stage_acts_on_it(mark: Mark) -> None:
    assert [words(marks.mark(place, mark)) for place in pipeline(GPipe(), 3)] == table("""
              ma>1 !
        mb<0  mb>2 !
        mc<1       !
    """)
    assert [words(marks.mark(place, mark)) for place in pipeline(PPLL(), 2, 2)] == table("""
              mb>1 !
        mc<0       !
    """)
    assert [words(marks.mark(place, mark)) for place in pipeline(Interleaved(), 3)] == table("""
              ma>1 !
        mb<0  mb>2 !
        mc<1       !
    """)
    (alone,) = pipeline(Interleaved())
    assert marks.mark(alone, mark) == [mark]


def draw(schedule: Schedule, stages: int, count: int, modules: int = 1) -> str:
    """Return the drawing of a run by `show`.

    Each letter takes one tick, and nothing else takes time.
    """
    streams = batches(schedule, stages, count, modules=modules)
    rows = simulate(streams, lambda _, i: float(type(i) in LETTERS), lambda _: MANY)
    return show([[(event.instruction, event.start_s) for event in row] for row in rows])


@pytest.mark.parametrize(
    ("schedule", "stages", "count"),
    [
        (BackPropagation(microbatches=4), 1, 1),
        (NaivePipeline(), 3, 1),
        (GPipe(microbatches=3), 3, 1),
        (OneFOneB(microbatches=4), 3, 1),
        (Interleaved(microbatches=4), 2, 1),
        (ZeroBubbleH1(microbatches=4), 3, 1),
        (PPLL(), 3, 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Schedule) else None,
)
def test_docstrings_have_the_pictures_that_show_draws(
    schedule: Schedule, stages: int, count: int
) -> None:
    lines = [line.strip() for line in (inspect.getdoc(type(schedule)) or "").splitlines()]
    picture = "\n".join(line for line in lines if line.startswith("stage "))
    assert draw(schedule, stages, count) == picture


def test_pictures_have_a_letter_for_each_chunk() -> None:
    assert draw(PPLL(), stages=2, count=2, modules=2).splitlines() == [
        "stage 0 | F0a B0a Sa  F0b B0b Sb  F1a B1a Sa  F1b B1b Sb  .   .   .   .",
        "stage 1 | .   .   .   .   F0a B0a Sa  F0b B0b Sb  F1a B1a Sa  F1b B1b Sb",
    ]


def test_show_draws_empty_stages() -> None:
    assert show([[], []]) == "stage 0 | .\nstage 1 | ."
