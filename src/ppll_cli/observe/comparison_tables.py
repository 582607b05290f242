"""Writes a comparison as a table: as text for a terminal of any width, as Markdown, or as CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.table import Table

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import NOISE, Comparison
from ppll_cli.observe.conditions import seed, tags
from ppll_cli.observe.groups import Group, Measure, Row
from ppll_cli.observe.runs import finite

GAP = 2
"""Characters between columns."""

WIDE = 24
"""Largest width of a cell, in characters, in a narrow window."""

LONGEST_CELL, LONGEST_NOTE = 400, 1000
"""Largest lengths of a cell and of a note, in characters; a longer text is shortened in the middle.
"""


class Measured(NamedTuple):
    """How tables show a measured value.

    Attributes:
        measure: Returns the value of a run.
        head: Head of the column. In it, the metric's name and the target replace `{metric}` and
            `{target}`.
        form: Format of the numbers, for example ".2f".
        scale: Divisor of the numbers, for example 1e6 for megabytes.
        with_noise: Whether cells show the deviation over the seeds, and the sign `NOISE`.
    """

    measure: Measure
    head: str
    form: str
    scale: float = 1.0
    with_noise: bool = True


def _bubble(row: Row) -> float | None:
    return finite(row.run.get("pipeline", "bubble_fraction"))


def _auxiliary(row: Row) -> float | None:
    found = row.of_stages("aux_fraction")
    return sum(found) / len(found) if found else None


MEASURES = {
    "samples_per_second": Measured(Row.rate, "samples/s", ".0f"),
    "speed_up_over_bp": Measured(Row.over_bp, "x bp", ".2f"),
    "speed_up_over_ll": Measured(Row.over_ll, "x ll", ".2f"),
    "bubble_fraction": Measured(_bubble, "bubble", ".3f", with_noise=False),
    "seconds_to_target": Measured(lambda row: row.seconds_to_target, "s to {target}", ".1f"),
    "best_metric": Measured(Row.best, "best {metric}", ".4f"),
    "peak_memory_bytes": Measured(
        lambda row: max(row.stage_bytes, default=None), "peak MB", ".0f", 1e6
    ),
    "aux_fraction": Measured(_auxiliary, "auxiliary", ".3f", with_noise=False),
}
"""The measured values of a run, by their columns in CSV files."""

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
"""Other columns of CSV files: `FACTS` about runs, and the name and the tags that users gave."""

SHOWN = ("name", "tags", "status", "schedule", "gpus", "settings")
"""The columns of `FACTS` and `GIVEN` that are also in tables."""


class Column(NamedTuple):
    """A column of the tables, with a cell for each `Group` of runs.

    The cell of an unknown value is empty. `left` says whether cells are aligned to the left.
    """

    head: str
    cells: Sequence[str]
    left: bool = False


def cell(group: Group, key: str, *, unit: str = "", counted: bool = True) -> str:
    """Return the text of a cell, such as "0.912 ± 0.003 (3)": mean, deviation and number of seeds.

    The text is empty if the value is unknown. The sign `NOISE` is added if noise can explain the
    difference from another group. For a speed-up, the other group is the baseline of this group;
    for other values, it is the `reference` of this group.

    Args:
        group: The group of runs.
        key: The measured value, one of `MEASURES`.
        unit: Text after the numbers.
        counted: Whether to show the number of seeds.
    """
    measure, _, form, scale, with_noise = MEASURES[key]
    found = group.spread(measure)
    if found is None:
        return ""
    said = format(found.mean / scale, form)
    if not with_noise:
        return said
    if found.deviation is not None:
        said += f" ± {format(found.deviation / scale, form)}"
        said += f" ({found.size})" if counted else ""
    against, judged = group.reference, measure
    baselines = {"speed_up_over_bp": group.first.bps, "speed_up_over_ll": group.first.lls}
    if key in baselines:  # for a ratio of speeds, the test for noise compares the speeds
        against, judged = next(iter(baselines[key]), None), Row.rate
    return said + unit + (f" {NOISE}" if group.within_noise_of(against, judged) else "")


def tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """Yield the comparison as one table or, if it is wider than `width` characters, as several.

    Each table begins with the names of the runs. Only columns without any value are left out.
    """
    columns = _columns(comparison)
    widths = [max(map(cell_len, [column.head, *column.cells])) for column in columns]
    if sum(widths) + GAP * (len(columns) - 1) > width:
        most = max(1, min(WIDE, width // 3))
        words = (max(map(len, column.head.split()), default=0) for column in columns)
        longest = (max(map(cell_len, column.cells)) for column in columns)
        widths = [max(word, min(most, cells)) for word, cells in zip(words, longest, strict=True)]
    first, *rest = zip(columns, widths, strict=True)
    taken: list[tuple[Column, int]] = []
    room = width - first[1]
    for column, wide in rest:
        if taken and room < GAP + wide:
            yield _table([first, *taken])
            taken, room = [], width - first[1]
        taken.append((column, wide))
        room -= GAP + wide
    yield _table([first, *taken])


def as_markdown(comparison: Comparison) -> str:
    """Return a Markdown table with the notes below it."""
    columns = [
        [column.head, "---" if column.left else "---:", *column.cells]
        for column in _columns(comparison)
    ]
    lines = (
        f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |"
        for line in zip(*columns, strict=True)
    )
    notes = (f"- {printable(note, LONGEST_NOTE)}" for note in comparison.notes)
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return CSV of all runs, in bytes, seconds and samples per second; unknown cells are empty."""
    return _csv(
        {
            "run": row.run.name,
            "folder": row.run.folder,
            **_facts(FACTS, Group([row])),
            **{key: measured.measure(row) for key, measured in MEASURES.items()},
            "seed": seed(row.run),
            **_facts(GIVEN, Group([row])),
        }
        for row in comparison.rows
    )


def groups_as_csv(comparison: Comparison) -> str:
    """Return CSV of all groups, with mean, deviation and number of seeds of each measure."""
    return _csv(
        {
            "runs": " ".join(row.run.name for row in group.rows),
            **_facts(FACTS | GIVEN, group),
            "label": f"{group.first.run.schedule} {group.differs}".rstrip(),
            **{
                f"{key}_{end}": value
                for key, measured in MEASURES.items()
                for end, value in zip(
                    ("mean", "deviation", "seeds"),
                    group.spread(measured.measure) or (None, None, None),
                    strict=True,
                )
            },
        }
        for group in comparison.groups
    )


def _facts(facts: Mapping[str, Callable[[Group], Any]], group: Group) -> dict[str, Any]:
    return {key: fact(group) for key, fact in facts.items()}


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = list(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, lines[0] if lines else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _columns(comparison: Comparison) -> list[Column]:
    metric, groups = comparison.metric, comparison.groups
    target = "target" if comparison.target is None else f"{metric} {comparison.target:.4g}"
    first = "runs" if any(len(group.rows) > 1 for group in groups) else "run"
    facts = {first: lambda group: group.name, **{key: (FACTS | GIVEN)[key] for key in SHOWN}}
    every = [
        Column(head, [_said(fact(group)) for group in groups], left=head != "gpus")
        for head, fact in facts.items()
    ]
    for key, measured in MEASURES.items():
        head = measured.head.format(metric=metric, target=target)
        every.append(Column(head, [cell(group, key) for group in groups]))
    return [column for column in every if any(column.cells)]


def _said(value: Any) -> str:
    return "" if value is None else printable(str(value), LONGEST_CELL)


def _table(columns: Sequence[tuple[Column, int]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column, width in columns:
        table.add_column(column.head, width=width, overflow="fold")
        table.columns[-1].justify = "left" if column.left else "right"
    for line in zip(*(column.cells for column, _ in columns), strict=True):
        table.add_row(*line)
    return table
