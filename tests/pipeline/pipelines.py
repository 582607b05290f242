"""Small pipelines without tensors: their routes, and the streams of all their stages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_lowercase
from typing import Any, NamedTuple

from ppll_cli.pipeline import passes
from ppll_cli.pipeline.instructions import (
    AddNorms,
    Backward,
    BackwardInput,
    BackwardWeight,
    Checkpoint,
    Compute,
    End,
    Evaluate,
    FinishAverage,
    Forward,
    Instruction,
    Loss,
    Measure,
    NextBatch,
    ReadWeights,
    ReceiveActivations,
    ReceiveGradients,
    ReceiveMark,
    ReceiveNorms,
    ReceiveWeights,
    Release,
    SendActivations,
    SendGradients,
    SendMark,
    SendNorms,
    SendWeights,
    StartAverage,
    Step,
)
from ppll_cli.pipeline.layout import Layout
from ppll_cli.pipeline.routes import Routes, Watch, find_routes
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.schedules.bp import BackPropagation
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.ll import LocalLearning
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.pipeline.schedules.pp import NaivePipeline
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1

KINDS: list[type[Schedule]] = [
    BackPropagation,
    LocalLearning,
    NaivePipeline,
    GPipe,
    OneFOneB,
    Interleaved,
    ZeroBubbleH1,
    PPLL,
]
MANY = 1000
"""Number of slots with which no sender waits."""

Streams = list[list[Instruction]]
Cost = Callable[[int, Instruction], float]


class Part(NamedTuple):
    """The names that a unit or a loss reads and writes."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


def part(arrow: str) -> Part:
    """Return a part from text: `x c > y` reads x and c, and writes y."""
    reads, writes = (tuple(side.split()) for side in arrow.split(">"))
    return Part(reads, writes)


CHAIN = ("image > x", "x > x", "x > x")
"""The first unit, the units in the middle, and the last unit."""
SKIP = ("image > x c", "x > x", "x c > x")


def units_of(count: int, arrows: Sequence[str] = CHAIN) -> list[Part]:
    """Return this number of units. A single one is the first."""
    first, middle, last = map(part, arrows)
    return [first, *[middle] * (count - 2), *[last] * (count > 1)]


def routes_of(
    schedule: Schedule,
    stages: int = 1,
    modules: int | Sequence[int] = 1,
    arrows: Sequence[str] = CHAIN,
    watches: Mapping[int, Watch] | None = None,
) -> Routes:
    """Return routes in which each chunk is one unit.

    Under local learning, each unit is also a module, and `modules` is the number of modules on a
    stage.
    """
    if not schedule.local:
        of_chunks = schedule.layout(stages)
        count = len(of_chunks)
        layout = Layout.spread([range(n, n + 1) for n in range(count)], of_chunks)
        return find_routes(layout, units_of(count, arrows), {count - 1: [part("x label >")]})
    counts = [modules] * stages if isinstance(modules, int) else modules
    count = sum(counts)
    starts = [sum(counts[:stage]) for stage in range(stages)]
    layout = Layout.contiguous(
        [range(n, n + 1) for n in range(count)],
        [range(start, start + own) for start, own in zip(starts, counts, strict=True)],
    )
    losses = {n: [part("x label >")] for n in range(count)}
    return find_routes(layout, units_of(count, arrows), losses, watches)


def places(
    routes: Routes, microbatches: int = 1, norms: bool = False, replicas: int = 1
) -> list[Place]:
    """Return the places of all stages."""
    stages = range(routes.layout.stages)
    return [Place(stage, routes, microbatches, norms, replicas) for stage in stages]


def pipeline(
    schedule: Schedule, stages: int = 1, modules: int | Sequence[int] = 1, **options: Any
) -> list[Place]:
    """Return the places of a chain of units, with the schedule's number of micro-batches."""
    return places(routes_of(schedule, stages, modules), schedule.microbatches, **options)


def trained(schedule: Schedule, pipeline: Iterable[Place]) -> Streams:
    """Return the instructions of each stage for a training batch."""
    return [passes.training(place, schedule) for place in pipeline]


def batches(schedule: Schedule, stages: int = 1, count: int = 1, **options: Any) -> Streams:
    """Return the instructions of each stage of a chain for `count` training batches."""
    streams = trained(schedule, pipeline(schedule, stages, **options))
    return [stream * count for stream in streams]


class Given(Schedule):
    """A user's schedule, with given instructions for each stage."""

    splits = True

    def __init__(self, given: Mapping[int, Iterable[Any]], microbatches: int = 1) -> None:
        super().__init__(microbatches=microbatches)
        self.given = given

    def batch(self, place: Place) -> Any:
        return iter(self.given[place.stage])


def computes(instruction: Instruction) -> bool:
    """Return whether a schedule may yield this instruction."""
    return isinstance(instruction, Compute)


def word(instruction: Instruction) -> str:
    """Return an instruction as a word. The docstring of `test_schedules` explains words."""

    def name(chunk: int, micro_batch: int | str = "") -> str:
        return f"{micro_batch}{ascii_lowercase[chunk]}"

    match instruction:
        case NextBatch():
            return "N"
        case Forward(chunk, m):
            return f"F{name(chunk, m)}"
        case Loss(chunk, m):
            return f"L{name(chunk, m)}"
        case Backward(chunk, m):
            return f"B{name(chunk, m)}"
        case BackwardInput(chunk, m):
            return f"I{name(chunk, m)}"
        case BackwardWeight(chunk, m):
            return f"W{name(chunk, m)}"
        case Step(chunk):
            return f"S{name(chunk)}"
        case Measure(chunk, m):
            return f"M{name(chunk, m)}"
        case SendActivations(peer, chunk, m):
            return f"x{name(chunk, m)}>{peer}"
        case ReceiveActivations(peer, chunk, m):
            return f"x{name(chunk, m)}<{peer}"
        case SendGradients(peer, chunk, m):
            return f"g{name(chunk, m)}>{peer}"
        case ReceiveGradients(peer, chunk, m):
            return f"g{name(chunk, m)}<{peer}"
        case SendNorms(peer):
            return f"n>{peer}"
        case ReceiveNorms(peer):
            return f"n<{peer}"
        case AddNorms():
            return "n+"
        case SendWeights(peer, chunk):
            return f"w{name(chunk)}>{peer}"
        case ReceiveWeights(peer, chunk):
            return f"w{name(chunk)}<{peer}"
        case ReadWeights(chunk):
            return f"w{name(chunk)}"
        case SendMark(peer, chunk):
            return f"m{name(chunk)}>{peer}"
        case ReceiveMark(peer, chunk):
            return f"m{name(chunk)}<{peer}"
        case Release(peer, chunk, kind):
            return f"{'x' if kind == 'activations' else 'g'}{name(chunk)}/{peer}"
        case StartAverage(chunk):
            return f"+{name(chunk)}"
        case FinishAverage(chunk):
            return f"={name(chunk)}"
        case Evaluate() | Checkpoint() | End():
            return "!"


def words(stream: Iterable[Instruction]) -> str:
    """Return a stream as words."""
    return " ".join(map(word, stream))


def table(text: str) -> list[str]:
    """Return the rows of a table, without the spaces that align its columns."""
    return [" ".join(row.split()) for row in text.strip().splitlines()]
