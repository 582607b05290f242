"""Keeps the figures that a module draws, after they are saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ppll_cli.observe import figures


def kept_figures(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Any]:
    """Return a list to which each figure of the module is added when it is saved."""
    made: list[Any] = []
    draw = figures.figure

    @contextmanager
    def kept(path: Path, height: float) -> Iterator[Any]:
        with draw(path, height) as figure:
            yield figure
            made.append(figure)

    monkeypatch.setattr(module, "figure", kept)
    return made
