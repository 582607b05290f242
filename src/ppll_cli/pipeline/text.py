"""Draws schedules as text, one row per stage."""

from collections import Counter
from collections.abc import Iterable, Sequence
from string import ascii_lowercase

from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Forward,
    Instruction,
    Step,
)

LETTERS = {Forward: "F", Backward: "B", BackwardInput: "B", BackwardWeight: "W", Step: "S"}
"""The letter for each drawn instruction. A `Loss` is drawn as part of its backward."""


def show(rows: Sequence[Iterable[tuple[Instruction, float]]]) -> str:
    """Draw the instructions of all stages as text, on a common time axis.

    `F2` is the third forward pass (numbers begin at 0). If a stage has several chunks, a second
    letter names the chunk: `F2b` is the third forward pass of chunk b.

    Args:
        rows: For each stage, its instructions, each with the tick (a whole number) of its start.
    """
    tables = [dict(_cells(row)) for row in rows]
    ticks = 1 + max((tick for table in tables for tick in table), default=0)
    width = max((len(cell) for table in tables for cell in table.values()), default=1)
    lines = []
    for stage, table in enumerate(tables):
        cells = [table.get(tick, ".").ljust(width) for tick in range(ticks)]
        lines.append(f"stage {stage} | {' '.join(cells)}".rstrip())
    return "\n".join(lines)


def _cells(row: Iterable[tuple[Instruction, float]]) -> Iterable[tuple[int, str]]:
    seen: Counter[tuple[str, int]] = Counter()
    events = list(row)
    chunks = sorted({each.chunk for each, _ in events if isinstance(each, Forward)})
    for instruction, tick in events:
        if not (name := LETTERS.get(type(instruction))):
            continue
        chunk = getattr(instruction, "chunk", 0)
        suffix = ascii_lowercase[chunks.index(chunk) % 26] if len(chunks) > 1 else ""
        if isinstance(instruction, Step):
            yield round(tick), f"{name}{suffix}"
            continue
        yield round(tick), f"{name}{seen[name, chunk]}{suffix}"
        seen[name, chunk] += 1
