"""Data sets of labelled pictures: which pictures are in which split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.data.imagefolder import ImageFolder
from ppll_cli.errors import ConfigError
from tests.data.class_pictures import both, write_classes

Options = Callable[..., dict[str, Any]]


@pytest.fixture
def make(options: Options, cache: Path, tmp_path: Path) -> Callable[..., ImageFolder]:
    """Return a function that makes the data set in the folder of the test."""

    def imagefolder(**changes: object) -> ImageFolder:
        return ImageFolder(**options(root=str(tmp_path), size=8, loaders=0, **changes))

    return imagefolder


def test_a_link_to_a_picture_of_another_split_is_refused(
    make: Callable[..., ImageFolder], tmp_path: Path
) -> None:
    """Earlier, links to folders were followed, but not links to single pictures."""
    both(tmp_path)
    (tmp_path / "test" / "a" / "new.png").symlink_to(tmp_path / "train" / "a" / "000.png")
    with pytest.raises(ConfigError, match=r"test/a/new.png: is in train and in test; keep it in"):
        make().prepare()


def test_links_in_two_classes_may_lead_to_one_file(
    make: Callable[..., ImageFolder], tmp_path: Path
) -> None:
    """Some programs store equal files only once, and put links in their places."""
    both(tmp_path)
    for name in "ab":
        (tmp_path / "train" / name / "new.png").symlink_to(tmp_path / "stored.png")
    (tmp_path / "train" / "a" / "000.png").rename(tmp_path / "stored.png")
    make().prepare()


@pytest.mark.parametrize(
    ("rare", "line"),
    [
        (0, ""),
        (1, "data.val_fraction=0.5 holds out all pictures of the class r0: the model cannot"),
        (
            2,
            "all pictures of the class r0, and of 1 more: the model cannot learn a class that has "
            "no training pictures; give a smaller fraction",
        ),
    ],
)
def test_a_class_that_is_wholly_held_out_is_named(
    make: Callable[..., ImageFolder],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rare: int,
    line: str,
) -> None:
    """Earlier, the run was trained without the class, and tested on it, and nothing said so."""
    write_classes(
        tmp_path, {"a": range(7), "b": range(7)} | {f"r{n}": [100 + n] for n in range(rare)}
    )
    dataset = make(val_fraction=0.5)
    dataset.prepare()
    assert (line in caplog.text) if line else not caplog.text
