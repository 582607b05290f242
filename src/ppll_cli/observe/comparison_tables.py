"""A comparison as tables: for a window of any width, in Markdown, and as plain numbers."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len
from rich.table import Table

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import Comparison, Row

GAP = 2
"""Characters between columns."""

WIDE = 24
"""Characters of a cell in a narrow window; a longer one is broken."""

LONGEST_CELL, LONGEST_NOTE = 400, 1000
"""Characters that are shown; a longer cell or note is shortened in its middle."""


CSV: dict[str, Callable[[Row], Any]] = {
    "run": lambda row: row.run.name,
    "folder": lambda row: row.run.folder,
    "status": lambda row: row.run.status,
    "comparable": lambda row: not row.unequal,
    "schedule": lambda row: row.run.schedule,
    "gpus": lambda row: row.gpus,
    "threads": lambda row: row.run.get("threads"),
    "settings": lambda row: row.differs,
    "samples_per_second": lambda row: row.samples_per_second,
    "speed_up_over_bp": lambda row: row.over_bp,
    "speed_up_over_ll": lambda row: row.over_ll,
    "bubble_fraction": lambda row: row.bubble,
    "seconds_to_target": lambda row: row.seconds_to_target,
    "best_metric": lambda row: row.best,
    "peak_memory_bytes": lambda row: row.peak_bytes,
    "aux_fraction": lambda row: row.auxiliary,
}
"""What each column of `as_csv` holds, in full precision."""


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        name: Its head.
        value: What a row has there, in full precision.
        text: That as people read it.
        left: Whether it is set flush left.
    """

    name: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str] = str
    left: bool = False


def tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """For a window so many characters wide: where one table has no room, one below the other.

    Each begins with the names of the runs. Nothing is left out; long cells are broken.
    """
    columns = _columns(comparison)
    texts = [_texts(columns, row) for row in comparison.rows]
    cells = {
        column.name: [cell_len(text[place]) for text in texts]
        for place, column in enumerate(columns)
    }
    whole = {c.name: max(len(c.name), *cells[c.name], 0) for c in columns}
    if sum(whole.values()) + GAP * (len(columns) - 1) <= width:
        yield _table(comparison, columns, whole)
        return
    words = {c.name: max(map(len, c.name.split()), default=0) for c in columns}
    most = max(1, min(WIDE, width // 3))
    need = {c.name: max(words[c.name], min(most, max(cells[c.name], default=0))) for c in columns}
    first, *rest = columns
    while rest:
        room, taken = width - need[first.name], 1
        room -= GAP + need[rest[0].name]
        while taken < len(rest) and room >= GAP + need[rest[taken].name]:
            room -= GAP + need[rest[taken].name]
            taken += 1
        yield _table(comparison, [first, *rest[:taken]], need)
        rest = rest[taken:]


def as_markdown(comparison: Comparison) -> str:
    """A table, and the notes below it."""
    columns = _columns(comparison)
    lines = [
        [column.name for column in columns],
        ["---" if column.left else "---:" for column in columns],
        *(_texts(columns, row) for row in comparison.rows),
    ]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in c)} |" for c in lines]
    notes = (f"- {printable(note, LONGEST_NOTE)}" for note in comparison.notes)
    return "\n".join([*table, "", *notes]).rstrip() + "\n"


def as_csv(comparison: Comparison) -> str:
    """Plain numbers, in bytes, seconds and samples per second; nothing where it is unknown."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV)
    for row in comparison.rows:
        cells = [value(row) for value in CSV.values()]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return file.getvalue()


def _columns(comparison: Comparison) -> list[Column]:
    """What is shown: no column without anything in it."""
    target = (
        "target" if comparison.target is None else f"{comparison.metric} {comparison.target:.4g}"
    )
    every = [
        Column("run", lambda row: row.name, left=True),
        Column("status", lambda row: row.run.status, left=True),
        Column("schedule", lambda row: row.run.schedule, left=True),
        Column("gpus", lambda row: row.gpus),
        Column("settings", lambda row: row.differs or None, left=True),
        Column("samples/s", lambda row: row.samples_per_second, lambda v: f"{v:.0f}"),
        Column("x bp", lambda row: row.over_bp, lambda v: f"{v:.2f}"),
        Column("x ll", lambda row: row.over_ll, lambda v: f"{v:.2f}"),
        Column("bubble", lambda row: row.bubble, lambda v: f"{v:.3f}"),
        Column(f"s to {target}", lambda row: row.seconds_to_target, lambda v: f"{v:.1f}"),
        Column(f"best {comparison.metric}", lambda row: row.best, lambda v: f"{v:.4f}"),
        Column("peak MB", lambda row: row.peak_bytes, lambda v: f"{v / 1e6:.0f}"),
        Column("auxiliary", lambda row: row.auxiliary, lambda v: f"{v:.3f}"),
    ]
    return [c for c in every if any(c.value(row) is not None for row in comparison.rows)]


def _table(comparison: Comparison, columns: Sequence[Column], widths: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.left else "right"
        width = widths[column.name]
        table.add_column(column.name, justify=justify, width=width, overflow="fold")
    for row in comparison.rows:
        table.add_row(*_texts(columns, row))
    return table


def _texts(columns: Sequence[Column], row: Row) -> list[str]:
    values = [column.value(row) for column in columns]
    return [
        "" if value is None else printable(column.text(value), LONGEST_CELL)
        for column, value in zip(columns, values, strict=True)
    ]
