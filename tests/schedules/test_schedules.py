"""Each schedule as a table: one row a stage, one word an instruction.

N           next batch              S           step
F0 U0 L0    forward, local update and loss of micro-batch 0
B0 M0       backward and measuring of micro-batch 0
a0>1 a0<1   send to and receive from stage 1: the activations of micro-batch 0
g0>1 g0<1   the same for gradients
n>1 n<1 n+  the same for the sum of squared norms; add the stage's own
m>1 m<1 !   the same for a mark; act on it
x1          give a slot of the channel from stage 1 back

Where a stage holds several chunks, a, b, ... behind the number tell them apart.
"""
# ruff: noqa: E501 - the tables are as wide as they are

import inspect
from collections.abc import Iterable
from string import ascii_lowercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppll_cli.schedules.bp import BackPropagation
from ppll_cli.schedules.gpipe import GPipe
from ppll_cli.schedules.instructions import (
    AddNorms,
    Backward,
    Checkpoint,
    End,
    Evaluate,
    FinishAverage,
    Forward,
    Instruction,
    LocalBackward,
    LocalStep,
    LocalUpdate,
    Loss,
    Mark,
    Measure,
    NextBatch,
    ReceiveActivations,
    ReceiveGradients,
    ReceiveMark,
    ReceiveNorms,
    Release,
    SendActivations,
    SendGradients,
    SendMark,
    SendNorms,
    StartAverage,
    Step,
)
from ppll_cli.schedules.ll import LocalLearning
from ppll_cli.schedules.one_f_one_b import OneFOneB
from ppll_cli.schedules.pp import NaivePipeline
from ppll_cli.schedules.ppll import PPLL
from ppll_cli.schedules.schedule import Place, Schedule, evaluation_batch, pass_mark
from ppll_cli.schedules.text import letter, show
from ppll_cli.simulate import simulate

SCHEDULES = [BackPropagation, LocalLearning, NaivePipeline, GPipe, OneFOneB, PPLL]


def word(instruction: Instruction, chunks: int) -> str:
    def part(micro_batch: int, chunk: int) -> str:
        return f"{micro_batch}{ascii_lowercase[chunk] if chunks > 1 else ''}"

    match instruction:
        case NextBatch():
            return "N"
        case Step():
            return "S"
        case Forward(chunk, micro_batch):
            return f"F{part(micro_batch, chunk)}"
        case LocalUpdate(chunk, micro_batch):
            return f"U{part(micro_batch, chunk)}"
        case Loss(chunk, micro_batch):
            return f"L{part(micro_batch, chunk)}"
        case Backward(chunk, micro_batch):
            return f"B{part(micro_batch, chunk)}"
        case Measure(chunk, micro_batch):
            return f"M{part(micro_batch, chunk)}"
        case SendActivations(peer, chunk, micro_batch):
            return f"a{part(micro_batch, chunk)}>{peer}"
        case ReceiveActivations(peer, chunk, micro_batch):
            return f"a{part(micro_batch, chunk)}<{peer}"
        case SendGradients(peer, chunk, micro_batch):
            return f"g{part(micro_batch, chunk)}>{peer}"
        case ReceiveGradients(peer, chunk, micro_batch):
            return f"g{part(micro_batch, chunk)}<{peer}"
        case SendNorms(peer):
            return f"n>{peer}"
        case ReceiveNorms(peer):
            return f"n<{peer}"
        case AddNorms():
            return "n+"
        case SendMark(peer):
            return f"m>{peer}"
        case ReceiveMark(peer):
            return f"m<{peer}"
        case Release(peer):
            return f"x{peer}"
        case LocalBackward(chunk, micro_batch):
            return f"G{part(micro_batch, chunk)}"
        case LocalStep(chunk):
            return f"S{part(0, chunk)}"
        case StartAverage(chunk):
            return f"+{part(0, chunk)}"
        case FinishAverage(chunk):
            return f"={part(0, chunk)}"
        case Evaluate() | Checkpoint() | End():
            return "!"


def words(stream: Iterable[Instruction], chunks: int = 1) -> str:
    return " ".join(word(instruction, chunks) for instruction in stream)


def table(text: str) -> list[str]:
    """The rows of a table; columns are only for the eye."""
    return [" ".join(row.split()) for row in text.strip().splitlines()]


# fmt: off
TABLES = {
    "gpipe": (GPipe, 3, 3, 1, """
        N    F0 a0>1      F1 a1>1      F2 a2>1 g0<1 B0 x1         g1<1 B1 x1         g2<1 B2 x1         S
        a0<0 F0 a0>2 a1<0 F1 a1>2 a2<0 F2 a2>2 g0<2 B0 x2 g0>0 x0 g1<2 B1 x2 g1>0 x0 g2<2 B2 x2 g2>0 x0 S
        a0<1 F0 L0   a1<1 F1 L1   a2<1 F2 L2        B0    g0>1 x1      B1    g1>1 x1      B2    g2>1 x1 S
    """),
    "1f1b": (OneFOneB, 3, 4, 1, """
        N    F0 a0>1 F1 a1>1 F2 a2>1              g0<1 B0 x1              F3 a3>1    g1<1 B1 x1              g2<1 B2 x1         g3<1 B3 x1         S
        a0<0 F0 a0>2 a1<0 F1 a1>2 g0<2 B0 x2 g0>0 x0    a2<0 F2 a2>2 g1<2 B1 x2 g1>0 x0 a3<0 F3 a3>2 g2<2 B2 x2 g2>0 x0 g3<2 B3 x2 g3>0 x0 S
        a0<1 F0 L0 B0 g0>1 x1          a1<1 F1 L1 B1 g1>1 x1        a2<1 F2 L2 B2 g2>1 x1        a3<1 F3 L3 B3 g3>1 x1              S
    """),
    "pp": (NaivePipeline, 3, 1, 1, """
        N    F0 a0>1 g0<1 B0 x1         S
        a0<0 F0 a0>2 g0<2 B0 x2 g0>0 x0 S
        a0<1 F0 L0        B0    g0>1 x1 S
    """),
    "bp": (BackPropagation, 1, 4, 1, """
        N F0 L0 B0 F1 L1 B1 F2 L2 B2 F3 L3 B3 S
    """),
    "ppll": (PPLL, 3, 1, 1, """
        N    F0 a0>1 U0
        a0<0 F0 a0>2 U0 x0
        a0<1 F0      U0 x1
    """),
    "ppll with two modules a stage": (PPLL, 3, 1, 2, """
        N     F0a U0a F0b a0b>1 U0b
        a0a<0 F0a U0a F0b a0b>2 U0b x0
        a0a<1 F0a U0a F0b       U0b x1
    """),
    "ll with three modules": (LocalLearning, 1, 1, 3, """
        N F0a U0a F0b U0b F0c U0c
    """),
}
# fmt: on


@pytest.mark.parametrize("name", TABLES)
def test_instructions_of_each_stage(name: str) -> None:
    kind, stages, microbatches, chunks, expected = TABLES[name]
    schedule = kind(microbatches=microbatches)
    places = [Place(stage, stages, chunks, microbatches) for stage in range(stages)]
    assert [words(schedule.batch(place), chunks) for place in places] == table(expected)


@pytest.mark.parametrize("kind", [GPipe, OneFOneB, NaivePipeline])
def test_norms_add_up_downstream_and_the_total_travels_back(kind: type[Schedule]) -> None:
    expected = table("""
            n+ n>1 n<1     S
        n<0 n+ n>2 n<2 n>0 S
        n<1 n+         n>1 S
    """)
    for stage, exchange in enumerate(expected):
        without = words(kind().batch(Place(stage, 3)))
        with_norms = words(kind().batch(Place(stage, 3, norms=True)))
        assert with_norms == without.removesuffix("S") + exchange


@pytest.mark.parametrize("kind", [GPipe, OneFOneB, NaivePipeline, BackPropagation])
def test_replicas_average_their_gradients_as_the_last_backward_goes(kind: type[Schedule]) -> None:
    for norms in (False, True):
        schedule = kind(microbatches=3)
        last = schedule.microbatches - 1
        places = [Place(0, 1, 1, last + 1, norms, replicas) for replicas in (1, 3)]
        without, found = (words(schedule.batch(place)) for place in places)
        exchange = " n+ S" if norms else " S"
        averaged = without.removesuffix(exchange).replace(f"B{last}", f"+0 B{last}")
        assert found == f"{averaged} =0{exchange}"


def test_replicas_average_a_module_while_they_compute_it_and_the_next() -> None:
    found = [words(PPLL().batch(Place(stage, 2, 3, replicas=2)), 3) for stage in range(2)]
    assert found == table("""
        N     F0a +0a G0a F0b +0b G0b =0a S0a F0c a0c>1 +0c G0c =0b S0b    =0c S0c
        a0a<0 F0a +0a G0a F0b +0b G0b =0a S0a F0c       +0c G0c =0b S0b x0 =0c S0c
    """)


def test_one_stage_adds_its_norms_alone() -> None:
    assert words(BackPropagation().batch(Place(0, 1, norms=True))) == "N F0 L0 B0 n+ S"


@pytest.mark.parametrize(
    ("kind", "held"),  # of each of four stages, for five and for two micro-batches
    [
        (GPipe, {5: [5, 5, 5, 5], 2: [2, 2, 2, 2]}),
        (OneFOneB, {5: [4, 3, 2, 1], 2: [2, 2, 2, 1]}),
        (NaivePipeline, {1: [1, 1, 1, 1]}),
        (PPLL, {1: [1, 1, 1, 1]}),
    ],
)
def test_held(kind: type[Schedule], held: dict[int, list[int]]) -> None:
    for microbatches, expected in held.items():
        schedule = kind(microbatches=microbatches)
        places = [Place(stage, 4, 1, microbatches) for stage in range(4)]
        assert [schedule.held(place) for place in places] == expected


@pytest.mark.parametrize(
    ("kind", "local", "one_stage", "microbatches"),
    [
        (BackPropagation, False, True, 5),
        (LocalLearning, True, True, 1),
        (NaivePipeline, False, False, 1),
        (GPipe, False, False, 5),
        (OneFOneB, False, False, 5),
        (PPLL, True, False, 1),
    ],
)
def test_what_a_schedule_is(
    kind: type[Schedule], local: bool, one_stage: bool, microbatches: int
) -> None:
    schedule = kind(microbatches=5)
    assert (schedule.local, schedule.one_stage) == (local, one_stage)
    assert schedule.microbatches == microbatches


sizes = st.integers(1, 12)


@given(st.sampled_from(SCHEDULES), sizes, sizes, sizes, st.booleans())
def test_every_schedule_keeps_the_order_of_the_micro_batches(
    kind: type[Schedule], stages: int, asked: int, chunks: int, norms: bool
) -> None:
    """The order in which gradients are summed decides their bits."""
    schedule = kind(microbatches=asked)
    chunks = chunks if schedule.local else 1
    for stage in range(stages):
        place = Place(stage, stages, chunks, schedule.microbatches, norms)
        stream = list(schedule.batch(place))
        micro_batches = list(range(schedule.microbatches))
        backwards = [i.micro_batch for i in stream if isinstance(i, Backward)]
        assert backwards == ([] if schedule.local else micro_batches)
        updates = [i.chunk for i in stream if isinstance(i, LocalUpdate)]
        assert updates == (list(range(chunks)) if schedule.local else [])
        forwards = [(i.micro_batch, i.chunk) for i in stream if isinstance(i, Forward)]
        assert forwards == [(m, chunk) for m in micro_batches for chunk in range(chunks)]
        assert stream.count(Step()) == (0 if schedule.local else 1)


def test_evaluation_batch() -> None:
    assert [words(evaluation_batch(Place(stage, 3))) for stage in range(3)] == table("""
        N    F0 a0>1 M0
        a0<0 F0 a0>2 M0 x0
        a0<1 F0      M0 x1
    """)
    assert [words(evaluation_batch(Place(stage, 2, 2)), 2) for stage in range(2)] == table("""
        N     F0a M0a F0b a0b>1 M0b
        a0a<0 F0a M0a F0b       M0b x0
    """)


@pytest.mark.parametrize("mark", [Evaluate("test", 7, 1), Checkpoint(7, 1), End(7)])
def test_a_mark_is_handed_on_before_it_is_acted_on(mark: Mark) -> None:
    assert [words(pass_mark(Place(stage, 3), mark)) for stage in range(3)] == table("""
            m>1 !
        m<0 m>2 !
        m<1     !
    """)
    assert list(pass_mark(Place(0, 1), mark)) == [mark]


def draw(schedule: Schedule, stages: int, batches: int, chunks: int = 1) -> str:
    """What `show` makes of a run in which every letter takes one tick and nothing else any."""
    places = [Place(stage, stages, chunks, schedule.microbatches) for stage in range(stages)]
    streams = [[i for _ in range(batches) for i in schedule.batch(place)] for place in places]
    run = simulate(streams, lambda _, i: 1.0 if letter(i) else 0.0, lambda _: 100)
    return show([[(event.instruction, event.start_s) for event in row] for row in run.events])


@pytest.mark.parametrize(
    ("schedule", "stages", "batches"),
    [
        (BackPropagation(microbatches=4), 1, 1),
        (NaivePipeline(), 3, 1),
        (GPipe(microbatches=3), 3, 1),
        (OneFOneB(microbatches=4), 3, 1),
        (PPLL(), 3, 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Schedule) else None,
)
def test_the_picture_in_the_docstring_is_what_is_drawn(
    schedule: Schedule, stages: int, batches: int
) -> None:
    lines = [line.strip() for line in (inspect.getdoc(type(schedule)) or "").splitlines()]
    picture = "\n".join(line for line in lines if line.startswith("stage "))
    assert draw(schedule, stages, batches) == picture


def test_chunks_are_told_apart_in_the_picture() -> None:
    assert draw(PPLL(), stages=2, batches=2, chunks=2).splitlines() == [
        "stage 0 | F0a U0a F0b U0b F1a U1a F1b U1b .   .   .",
        "stage 1 | .   .   .   F0a U0a F0b U0b F1a U1a F1b U1b",
    ]


def test_nothing_to_draw() -> None:
    assert show([[], []]) == "stage 0 | .\nstage 1 | ."
