"""Places and streams for tests of single passes. `test_schedules` explains the words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    FinishAverage,
    Forward,
    Loss,
    NextBatch,
    StartAverage,
    Step,
    Stream,
)
from ppll_cli.pipeline.layout import Chunk, Layout
from ppll_cli.pipeline.routes import find_routes
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.schedule import Place
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.slots import slots_needed
from tests.pipeline.pipelines import Streams, part, places, routes_of

PARTS: dict[str, Any] = {
    "F": Forward,
    "L": Loss,
    "B": Backward,
    "I": BackwardInput,
    "W": BackwardWeight,
}
OF_CHUNKS: dict[str, Any] = {"S": Step, "+": StartAverage, "=": FinishAverage}


def stream(text: str) -> Stream:
    """Return the instructions of words: `F1a` is the forward of micro-batch 1 in chunk 0."""
    found: Stream = []
    for word in text.split():
        if word == "N":
            found.append(NextBatch())
            continue
        chunk = ord(word[-1]) - ord("a")
        if word[0] in PARTS:
            found.append(PARTS[word[0]](chunk, int(word[1:-1])))
        else:
            found.append(OF_CHUNKS[word[0]](chunk))
    return found


def squeezed(text: str) -> str:
    return " ".join(text.split())


def chunks_on(
    stages: Sequence[int], arrows: Sequence[str], losses: Mapping[int, str]
) -> list[Place]:
    """Return the places of chunks with one unit each. A module ends at each loss."""
    ends = [number in losses for number in range(len(stages))]
    chunks = tuple(
        Chunk(range(number, number + 1), stage, sum(ends[:number]), ends[number])
        for number, stage in enumerate(stages)
    )
    readers = {number: [part(f"{names} >")] for number, names in losses.items()}
    return places(find_routes(Layout(chunks), [part(arrow) for arrow in arrows], readers))


CHAIN_OF_3 = places(routes_of(GPipe(), 3))  # one chunk on each stage: a, b and c
ROUND = places(routes_of(Interleaved(), 2))  # chunks a and c on stage 0, b and d on stage 1
(BOTH,) = places(routes_of(Interleaved(), 1))  # chunks a and b of one module
(MODULES,) = places(routes_of(PPLL(), 1, 3))  # chunks a, b and c, each a module
TWO_OF_2 = places(routes_of(PPLL(), 2, 2))  # modules a and b on stage 0, c and d on stage 1


def slots_of(streams: Streams, depth: int) -> Callable[[Channel], int]:
    """Return the number of slots of each channel, as the launcher chooses it."""
    needed = slots_needed(streams)
    return lambda channel: needed[channel] + depth
