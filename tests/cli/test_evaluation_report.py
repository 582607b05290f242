"""The table of ppll-eval shows the classes or pictures with the worst results."""

import pytest

from ppll_cli.cli.evaluation_report import MOST_ROWS, _table
from tests.other_task import OtherTask


@pytest.mark.parametrize(("lower", "which"), [(False, "lowest"), (True, "highest")])
def test_a_long_table_shows_the_worst_entries(lower: bool, which: str) -> None:
    task = OtherTask()
    task.lower_is_better = lower
    entries = [{"class": f"c{n}", "samples": 1, task.metric: n / 10} for n in range(30)]
    entries.append({"class": "unknown", "samples": 0, task.metric: None})
    table = _table("class", entries, task)
    assert str(table.title).startswith(f"the {MOST_ROWS} {which} of 31; ")
    assert [column.header for column in table.columns] == ["class", "samples", "distance"]
    worst = range(29, 9, -1) if lower else range(20)
    assert [*table.columns[0].cells] == [f"c{n}" for n in worst]
