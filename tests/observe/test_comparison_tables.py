"""Tables of comparisons: columns, and widths."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ppll_cli.observe.comparison import Comparison, compare
from ppll_cli.observe.comparison_tables import as_markdown, tables
from tests.observe.compared_runs import make, rows


def test_unknown_values_are_empty_cells(tmp_path: Path) -> None:
    make(tmp_path / "0", "ppll", None, pipeline={}, stages=[], test=None)
    assert compare([tmp_path]).metric == "metric"
    (row,) = rows(tmp_path)
    empty = {key for key, value in row.items() if not value}
    assert empty == {
        "settings",
        "samples_per_second",
        "speed_up_over_bp",
        "speed_up_over_ll",
        "bubble_fraction",
        "seconds_to_target",
        "best_metric",
        "peak_memory_bytes",
        "aux_fraction",
        "seed",
        "name",
        "tags",
    }


def test_markdown_leaves_out_empty_columns(tmp_path: Path) -> None:
    make(tmp_path / "a|b", "ppll", 150.4, accuracies=(0.5,))
    text = as_markdown(compare([tmp_path])).splitlines()
    assert text[0] == (
        "| run | status | schedule | gpus | samples/s | bubble | s to test accuracy 0.5 | "
        "best test accuracy | peak MB | auxiliary |"
    )
    assert text[2] == ("| a\\|b | completed | ppll | 2 | 150 | 0.125 | 2.0 | 0.5000 | 0 | 0.125 |")


def test_names_and_tags_of_users_have_columns(tmp_path: Path) -> None:
    for number in range(2):
        config = {"name": f"wide-{number}", "tags": ["b", "a"], "seed": number}
        make(tmp_path / str(number), "ppll", config=config)
    make(tmp_path / "2", "ppll", config={"name": "wide", "seed": 2})
    head, _, *lines = as_markdown(compare([tmp_path])).splitlines()
    assert head.startswith("| runs | name | tags | status | schedule | gpus | settings |")
    assert lines[0].startswith("| 0, 1 | wide- | a b | 2 completed | ppll | 2 |")
    assert lines[1].startswith("| 2 | wide |  | completed | ppll | 2 | seed=2 |")
    each = as_markdown(compare([tmp_path], each=True)).splitlines()
    assert each[2].startswith("| 0 | wide-0 | a b | completed | ppll |")
    assert [(row["name"], row["tags"]) for row in rows(tmp_path)] == [
        ("wide-0", "a b"),
        ("wide-1", "a b"),
        ("wide", ""),
    ]


def printed(comparison: Comparison, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in tables(comparison, width):
        console.print(table)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_narrow_window_shows_several_tables(tmp_path: Path, width: int) -> None:
    """Every number stays whole at every width."""
    for number in range(3):
        config = {"optim": {"lr": number}}
        make(tmp_path / str(number), "ppll", 1234.0 + number, accuracies=(0.5,), config=config)
    found = compare([tmp_path])
    lines = printed(found, width)
    assert all(len(line) <= width for line in lines)
    words = [word for line in lines for word in line.split()]
    for number in range(3):
        rows = [line for line in lines if line.startswith(f"{number} ")]
        assert all(row.split()[0] == str(number) for row in rows)
        assert len(rows) == {40: 3, 60: 2, 80: 2, 120: 1, 200: 1}[width]
        assert str(1234 + number) in words
    assert words.count("completed") == words.count("0.5000") == 3
    assert width != 200 or len(lines) == 4


def test_a_long_name_is_wrapped_and_not_cut(tmp_path: Path) -> None:
    name = "a-name-of-a-run-that-is-longer-than-a-third-of-the-window"
    make(tmp_path / name, "ppll")
    lines = printed(compare([tmp_path]), 60)
    first = lines[1 : next(n for n, line in enumerate(lines) if n > 1 and line.startswith("run"))]
    assert "".join(line[:20].strip() for line in first).startswith(name)
