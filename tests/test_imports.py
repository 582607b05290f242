"""Folders import only from folders below, so that a reader of one needs to know only these."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppll_cli

ROOT = Path(ppll_cli.__file__).parent

LAYERS = (
    {"__main__"},
    {"cli"},
    {"launch"},
    {"prepare", "worker"},
    {"predict"},
    {"job"},
    {"transport", "local", "data", "observe"},
    {"models"},
    {"tasks"},
    {"pipeline", "config"},
    {"__init__", "errors", "leaves", "seeding"},
)
"""Layers from the top. Folders of one layer do not import each other, except in the last layer."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

FILES = sorted({*ROOT.rglob("*.py")} - {ROOT / "__init__.py"})
"""All files but the package's `__init__.py`. It offers users a function of an upper layer, which it
imports when called."""


def _folder(parts: tuple[str, ...]) -> str:
    """Return the folder, or file, at the package's root that contains a module or file."""
    return parts[0].removesuffix(".py") if parts else "__init__"


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the folders from which a file imports, at any place in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ppll_cli":
            parts = tuple((node.module or "").split(".")[1:])
            yield from [_folder(parts)] if parts else [_named(each.name) for each in node.names]
        elif isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] == "ppll_cli":
                    yield _folder(tuple(each.name.split(".")[1:]))


def _named(name: str) -> str:
    """Return the folder or file NAME of `from ppll_cli import NAME`.

    For other names it is `__init__`.
    """
    return name if name in RANK else "__init__"


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_files_import_only_from_their_own_folder_and_those_below(file: Path) -> None:
    own = _folder(file.relative_to(ROOT).parts)
    for other in imported(ast.parse(file.read_text())):
        below = RANK[other] > RANK[own] or RANK[own] == RANK[other] == len(LAYERS) - 1
        assert other == own or below, f"{file.relative_to(ROOT)} imports from {other}"


def test_pipeline_imports_neither_torch_nor_processes() -> None:
    for file in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "multiprocessing"}, file


def test_the_package_has_only_the_known_folders() -> None:
    there = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.name[0] != "."}
    assert there - {"__pycache__", "py.typed", "conf"} == set(RANK)
