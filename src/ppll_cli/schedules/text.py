"""Schedules as text, one row a stage."""

from collections import Counter
from collections.abc import Iterable, Sequence
from string import ascii_lowercase

from ppll_cli.schedules.instructions import (
    Backward,
    Forward,
    Instruction,
    LocalBackward,
    LocalUpdate,
    Step,
)


def letter(instruction: Instruction) -> str:
    """F forward, U local update, B backward, S step; empty for what takes no computing."""
    match instruction:
        case Forward():
            return "F"
        case LocalUpdate() | LocalBackward():
            return "U"
        case Backward():
            return "B"
        case Step():
            return "S"
    return ""


def show(rows: Sequence[Iterable[tuple[Instruction, float]]]) -> str:
    """Draw the computing of each stage on a common clock.

    Each number counts the micro-batches that the stage has worked on, and where a stage holds
    several chunks a letter tells them apart: `F2b` is the third forward of the second chunk.

    Args:
        rows: For each stage, its instructions with the tick (a whole number) at which each starts.
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
    chunks = {i.chunk for i, _ in events if isinstance(i, Forward)}
    for instruction, tick in events:
        if not (name := letter(instruction)):
            continue
        if isinstance(instruction, Step):
            yield round(tick), name
            continue
        chunk = getattr(instruction, "chunk", 0)
        suffix = ascii_lowercase[chunk] if len(chunks) > 1 else ""
        yield round(tick), f"{name}{seen[name, chunk]}{suffix}"
        seen[name, chunk] += 1
