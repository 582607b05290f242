"""The table of ppll-eval shows the classes or pictures with the worst results."""

import pytest

from ppll_cli.cli.evaluation_report import MOST_ROWS, _predicted, _table
from tests.other_task import OtherTask


@pytest.mark.parametrize(("lower", "which"), [(False, "lowest"), (True, "highest")])
def test_a_long_table_shows_the_worst_entries(lower: bool, which: str) -> None:
    task = OtherTask()
    task.lower_is_better = lower
    entries = [{"class": f"c{n}", "samples": 1, task.metric: n / 10} for n in range(30)]
    entries.append({"class": "unknown", "samples": 0, task.metric: None})
    table = _table("class", entries, task)
    assert table.title == f"the {MOST_ROWS} with the {which} distance; evaluation.json has all 31"
    assert [column.header for column in table.columns] == ["class", "samples", "distance"]
    worst = range(29, 9, -1) if lower else range(20)
    assert [*table.columns[0].cells] == [f"c{n}" for n in worst]


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("fire truck", "fire truck"),
        ("a=b", "a=b"),
        ("tench, Tinca tinca", '"tench, Tinca tinca"'),
        ('5" plate', r'"5\" plate"'),
        (" cat", '" cat"'),
        ("two\nlines", r'"two\nlines"'),
        ("", '""'),
        ("Jos\u00e9, k", '"Jos\u00e9, k"'),
    ],
)
def test_a_class_name_is_quoted_if_a_reader_could_not_tell_where_it_ends(
    name: str, printed: str
) -> None:
    """A name with a comma looked like two classes, of which the first had no probability."""
    sure = [{"class": name, "probability": 0.75}, {"class": "dog", "probability": 0.25}]
    found = _predicted({"file": "a.png", "probabilities": sure})
    assert found == f"a.png: {printed} 0.7500, dog 0.2500"
    boxes = [{"class": name, "score": 0.5}]
    assert _predicted({"file": "a.png", "boxes": boxes}) == f"a.png: 1 box: {printed} 0.50"
