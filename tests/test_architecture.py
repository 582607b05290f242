"""docs/architecture.md names existing code, and shows the real stream of instructions."""

import ast
import re
from importlib import import_module
from pathlib import Path

import ppll_cli
from ppll_cli.pipeline import passes
from ppll_cli.pipeline.layout import Layout
from ppll_cli.pipeline.routes import find_routes
from ppll_cli.pipeline.schedule import Place
from ppll_cli.pipeline.schedules.ppll import PPLL

ROOT = Path(ppll_cli.__file__).parent
PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()


READING_LINES = 600
"""Most lines of all files that a reader of PPLL needs. Move what PPLL does not need elsewhere."""

FUNCTION_LINES = 60
"""Most lines of a function."""


class _Access:
    def __init__(self, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        self.reads, self.writes = reads, writes


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`([a-z]\w*/(?:\w+/)*(?:\w+\.py)?)`", PAGE))
    assert len(named) > 20
    missing = [name for name in named if not (ROOT / name).exists()]
    assert [name for name in missing if not (ROOT.parents[1] / name).exists()] == []


def test_methods_that_the_page_names_exist() -> None:
    cited = re.findall(r"`(\w+/\w+)\.py`,\s+`(\w+)(?:\.(\w+))?`", PAGE)
    assert len(cited) > 4
    for file, name, method in cited:
        found = getattr(import_module(f"ppll_cli.{file.replace('/', '.')}"), name)
        assert not method or hasattr(found, method)


def test_the_stream_that_the_page_shows_is_the_real_one() -> None:
    units = [_Access(("x",) if n else ("image",), ("x",)) for n in range(3)]
    runs = [range(n, n + 1) for n in range(3)]
    ends = {n: [_Access(("x", "label"), ())] for n in range(3)}
    place = Place(1, find_routes(Layout.contiguous(runs, runs), units, ends))
    shown = re.findall(r"^(\w+\(.*?\)) {2,}", PAGE, re.MULTILINE)
    assert shown == [str(each) for each in passes.training(place, PPLL())]


def test_the_order_that_the_page_shows_is_the_schedules() -> None:
    source = (ROOT / "pipeline" / "schedules" / "ppll.py").read_text()
    block = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    assert [line for line in lines if line not in source] == []


def test_ppll_can_be_read_in_one_sitting() -> None:
    """The page's numbers may be off by a few lines, but not by more."""
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert 1 <= len(rows) <= 7
    found = {file: len((ROOT / file).read_text().splitlines()) for file, _ in rows}
    assert sum(found.values()) <= READING_LINES
    assert [(file, found[file]) for file, said in rows if abs(found[file] - int(said)) > 8] == []


def test_no_function_is_longer_than_a_screen() -> None:
    """A reader sees a whole function at once, its docstring included."""
    long = [
        (str(file.relative_to(ROOT)), node.name, lines)
        for file in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert long == []
