"""The notebooks of docs/examples run from the first cell to the last."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.finished import finished_run

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def test_the_notebook_on_finished_runs_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(
        tmp_path / "outputs" / "first",
        "model.dim=16",
        "model.depth=2",
        "model.heads=2",
        "schedule=bp",
        "max_steps=2",
    )
    monkeypatch.chdir(tmp_path)
    book = json.loads((EXAMPLES / "evaluate.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    scope: dict[str, Any] = {}
    for cell in cells:
        exec(cell, scope)
    assert scope["run"].classes == tuple("0123456789")
    assert scope["image"].shape == (1, 1, 8, 8)
    assert scope["found"]["class"] in scope["run"].classes
    assert scope["evaluated"].result == run.test
