"""The table of ppll-eval shows the classes or pictures with the worst results."""

import io

import pytest
from rich.console import Console

from ppll_cli.cli.evaluation_report import MOST_ROWS, _table
from tests.other_task import OtherTask


@pytest.mark.parametrize(("lower", "which"), [(False, "lowest"), (True, "highest")])
def test_a_long_table_shows_the_worst_entries(lower: bool, which: str) -> None:
    task = OtherTask()
    task.lower_is_better = lower
    entries = [{"class": f"c{n}", "samples": 1, task.metric: n / 10} for n in range(30)]
    entries.append({"class": "unknown", "samples": 0, task.metric: None})
    out = io.StringIO()
    Console(width=80, file=out).print(_table("class", entries, task))
    title, head, *rows = out.getvalue().splitlines()
    assert title.startswith(f"the {MOST_ROWS} {which} of 31; ")
    assert head.split() == ["class", "samples", "distance"]
    worst = range(29, 9, -1) if lower else range(20)
    assert [row.split()[0] for row in rows] == [f"c{n}" for n in worst]
