"""Writes a comparison as tables: for a window of any width, in Markdown, and as CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len
from rich.table import Table

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import NOISE, Comparison
from ppll_cli.observe.conditions import seed, tags
from ppll_cli.observe.groups import Group, Measure, Row
from ppll_cli.observe.runs import number

GAP = 2
"""Characters between columns."""

WIDE = 24
"""Largest width of a cell, in characters, in a narrow window."""

LONGEST_CELL, LONGEST_NOTE = 400, 1000
"""Largest lengths of a cell and of a note, in characters; a longer text is shortened in the middle.
"""


MEASURES: dict[str, Measure] = {
    "samples_per_second": Row.rate,
    "speed_up_over_bp": Row.over_bp,
    "speed_up_over_ll": Row.over_ll,
    "bubble_fraction": lambda row: number(row.run.get("pipeline", "bubble_fraction")),
    "seconds_to_target": lambda row: row.seconds_to_target,
    "best_metric": Row.best,
    "peak_memory_bytes": lambda row: max(row.stage_bytes, default=None),
    "aux_fraction": lambda row: (
        sum(found) / len(found) if (found := row.of_stages("aux_fraction")) else None
    ),
}
"""Columns of measured values in CSV files; each function returns the value of a run."""

FACTS: dict[str, Callable[[Group], Any]] = {
    "status": lambda group: group.status,
    "comparable": lambda group: not group.first.unequal,
    "schedule": lambda group: group.first.run.schedule,
    "gpus": lambda group: group.first.gpus,
    "threads": lambda group: group.first.run.get("threads"),
    "settings": lambda group: group.differs,
}
GIVEN: dict[str, Callable[[Group], Any]] = {
    "name": lambda group: group.given_name,
    "tags": lambda group: tags(group.first.run),
}


@dataclass(frozen=True)
class Column:
    """A column of the tables. `text` returns a group's cell; empty if unknown."""

    name: str
    text: Callable[[Group], str]
    left: bool = False


def cell(
    group: Group,
    measure: Measure,
    form: str,
    scale: float = 1.0,
    against: Group | None = None,
    *,
    judged: Measure | None = None,
    unit: str = "",
    counted: bool = True,
) -> str:
    """Return a group's mean of a measure and, with several seeds, its standard deviation, as text.

    Numbers are divided by `scale`. The sign `NOISE` is added if noise can explain how `group`
    differs from `against`. The two groups are compared in the measure `judged`; if it is None, in
    `measure`. If `counted`, the number of seeds follows the standard deviation.
    """
    found = group.spread(measure)
    if found is None:
        return ""
    said = format(found.mean / scale, form)
    if found.deviation is not None:
        said += f" ± {format(found.deviation / scale, form)}"
        said += f" ({found.count})" if counted else ""
    noisy = group.within_noise_of(against, judged or measure)
    return said + unit + (f" {NOISE}" if noisy else "")


def tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """Yield the comparison as one table or, if it is wider than `width` characters, as several.

    Each table begins with the names of the runs. No column is left out.
    """
    columns = _columns(comparison)
    texts = [_texts(columns, group) for group in comparison.groups]
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
    """Return a Markdown table with the notes below it."""
    columns = _columns(comparison)
    lines = [
        [column.name for column in columns],
        ["---" if column.left else "---:" for column in columns],
        *(_texts(columns, group) for group in comparison.groups),
    ]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in c)} |" for c in lines]
    notes = (f"- {printable(note, LONGEST_NOTE)}" for note in comparison.notes)
    return "\n".join([*table, "", *notes]).rstrip() + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return CSV of all runs, in bytes, seconds and samples per second; unknown cells are empty."""
    head, lines = ["run", "folder", *FACTS, *MEASURES, "seed", *GIVEN], []
    for row in comparison.rows:
        facts, names = (_values(columns, Group([row])) for columns in (FACTS, GIVEN))
        measured = [measure(row) for measure in MEASURES.values()]
        lines.append([row.run.name, row.run.folder, *facts, *measured, seed(row.run), *names])
    return _csv(head, lines)


def groups_as_csv(comparison: Comparison) -> str:
    """Return CSV of all groups, with mean, deviation and number of seeds of each measure."""
    ends = ("mean", "deviation", "seeds")
    columns = [f"{name}_{end}" for name in MEASURES for end in ends]
    head, lines = ["runs", *FACTS, *GIVEN, "label", *columns], []
    for group in comparison.groups:
        names = " ".join(row.run.name for row in group.rows)
        label = f"{group.first.run.schedule} {group.differs}".rstrip()
        measured = [n for measure in MEASURES.values() for n in _numbers(group, measure)]
        lines.append([names, *_values({**FACTS, **GIVEN}, group), label, *measured])
    return _csv(head, lines)


def _values(columns: Mapping[str, Callable[[Group], Any]], group: Group) -> list[Any]:
    return [value(group) for value in columns.values()]


def _numbers(group: Group, measure: Measure) -> Sequence[float | None]:
    found = group.spread(measure)
    return (None,) * 3 if found is None else (found.mean, found.deviation, found.count)


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()


def _columns(comparison: Comparison) -> list[Column]:
    target = (
        "target" if comparison.target is None else f"{comparison.metric} {comparison.target:.4g}"
    )
    several = any(len(group.rows) > 1 for group in comparison.groups)
    every = [
        _said("runs" if several else "run", lambda group: group.name),
        _said("name", lambda group: group.given_name),
        _said("tags", lambda group: tags(group.first.run)),
        _said("status", lambda group: group.status),
        _said("schedule", lambda group: group.first.run.schedule),
        _said("gpus", lambda group: group.first.gpus, left=False),
        _said("settings", lambda group: group.differs),
        _measured("samples/s", "samples_per_second", ".0f"),
        _measured("x bp", "speed_up_over_bp", ".2f"),
        _measured("x ll", "speed_up_over_ll", ".2f"),
        _mean("bubble", "bubble_fraction"),
        _measured(f"s to {target}", "seconds_to_target", ".1f"),
        _measured(f"best {comparison.metric}", "best_metric", ".4f"),
        _measured("peak MB", "peak_memory_bytes", ".0f", 1e6),
        _mean("auxiliary", "aux_fraction"),
    ]
    return [c for c in every if any(map(c.text, comparison.groups))]


def _said(name: str, value: Callable[[Group], Any], *, left: bool = True) -> Column:

    def text(group: Group) -> str:
        found = value(group)
        return "" if found is None else printable(str(found), LONGEST_CELL)

    return Column(name, text, left)


def _mean(name: str, key: str) -> Column:

    def text(group: Group) -> str:
        found = group.spread(MEASURES[key])
        return "" if found is None else f"{found.mean:.3f}"

    return Column(name, text)


def _measured(name: str, key: str, form: str, scale: float = 1.0) -> Column:
    """Return a column of means; `NOISE` follows a mean if noise can explain how two groups differ.

    A group is compared with its baseline for a speed-up, and with its reference for other means.
    """

    def text(group: Group) -> str:
        baselines = {"speed_up_over_bp": group.first.bps, "speed_up_over_ll": group.first.lls}
        against = next(iter(baselines[key]), None) if key in baselines else group.reference
        # For a ratio of speeds, the test for noise compares the speeds.
        judged = MEASURES["samples_per_second" if key in baselines else key]
        return cell(group, MEASURES[key], form, scale, against, judged=judged)

    return Column(name, text)


def _table(comparison: Comparison, columns: Sequence[Column], widths: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.left else "right"
        width = widths[column.name]
        table.add_column(column.name, justify=justify, width=width, overflow="fold")
    for group in comparison.groups:
        table.add_row(*_texts(columns, group))
    return table


def _texts(columns: Sequence[Column], group: Group) -> list[str]:
    return [column.text(group) for column in columns]
