"""Pictures of confusion matrices."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppll_cli.observe import confusion_picture
from ppll_cli.observe.confusion_picture import MOST_NAMED, picture
from tests.observe.drawn import kept_figures


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch, table: Any, names: list[str]) -> Any:
    made = kept_figures(monkeypatch, confusion_picture)
    picture(folder / "confusion.png", table.tolist(), names, "test accuracy 0.5000")
    assert (folder / "confusion.png").stat().st_size > 0
    return made[0].axes[0]


def test_rows_are_true_classes_shaded_by_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.array([[3, 1], [0, 0]])
    axes = drawn(tmp_path, monkeypatch, table, ["$cat$", "a dog of a very long name"])
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["$cat$", "a dog of a very..."]
    cells = {text.get_text(): text.get_position() for text in axes.texts}
    assert cells == {"3": (0, 0), "1": (1, 0)}
    assert axes.get_ylabel() == "true class"


def test_with_many_classes_only_some_are_named_and_cells_have_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = drawn(tmp_path, monkeypatch, np.eye(150, dtype=int), [str(n) for n in range(150)])
    assert len(axes.get_yticks()) <= MOST_NAMED
    assert len(axes.texts) == 0


def test_names_in_letters_that_the_font_lacks_cause_no_warning(tmp_path: Path) -> None:
    """Matplotlib's warning, with a line of this program's code, stood above the results."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture(tmp_path / "confusion.png", [[1, 0], [0, 1]], ["猫", "🦉"], "test accuracy 1.0000")
    assert (tmp_path / "confusion.png").exists()
