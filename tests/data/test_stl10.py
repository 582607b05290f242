from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import STL10

from ppll_cli.data.stl10 import Stl10
from ppll_cli.errors import ConfigError
from tests.data.published_files import Files, assert_read, listed, write

Options = Callable[..., dict[str, Any]]
PIXELS = np.random.RandomState(0).randint(256, size=(14, 3, 96, 96), dtype=np.uint8)
FOLDER = "stl10_binary"


def published() -> Files:
    """Return ten training and four test images, column by column. Labels are bytes, from 1."""
    return {
        "train_X.bin": PIXELS[:10].transpose(0, 1, 3, 2).tobytes(),
        "train_y.bin": bytes(range(1, 11)),
        "test_X.bin": PIXELS[10:].transpose(0, 1, 3, 2).tobytes(),
        "test_y.bin": bytes([10, 1, 2, 3]),
    }


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Files], str]:
    """Return a function that writes files as if they were the published ones.

    It returns the root.
    """

    def install(files: Files) -> str:
        write(tmp_path / FOLDER, files)
        *train, images, labels = listed(files)
        unlabelled = ("unlabeled_X.bin", "5242ba1fed5e4be9e1e742405eb56ca4")
        monkeypatch.setattr(STL10, "train_list", [*train, unlabelled])
        monkeypatch.setattr(STL10, "test_list", [images, labels])
        return str(tmp_path)

    return install


def test_files_are_read_into_splits_without_the_unlabelled_images(
    options: Options, install: Callable[[Files], str], contents: Callable[[Path], Files]
) -> None:
    root = install(published())
    before = contents(Path(root))
    assert_read(Stl10(**options(root=root)), PIXELS[:10], PIXELS[10:], [9, 0, 1, 2])
    assert contents(Path(root)) == before


def test_a_file_with_a_wrong_checksum_is_refused_by_name(
    options: Options, install: Callable[[Files], str]
) -> None:
    root = install(published())
    path = Path(root, FOLDER, "train_y.bin")
    path.write_bytes(bytes(10))
    with pytest.raises(ConfigError, match=f"{path}: is not the published file"):
        Stl10(**options(root=root)).load()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"test_X.bin": published()["test_X.bin"][:-1]}, "cannot be read"),
        ({"test_y.bin": bytes([1, 2, 3])}, "holds 4 images and 3 labels"),
        ({"test_y.bin": bytes([1, 2, 3, 11])}, "holds labels 0 to 10"),
        ({"test_y.bin": bytes([1, 2, 3, 0])}, "holds labels 0 to 255"),
        ({"train_X.bin": b"", "train_y.bin": b""}, "holds no images"),
    ],
)
def test_wrong_contents_are_refused_despite_a_right_checksum(
    options: Options, install: Callable[[Files], str], change: Files, problem: str
) -> None:
    root = install(published() | change)
    with pytest.raises(ConfigError, match=problem) as caught:
        Stl10(**options(root=root)).load()
    assert next(iter(change)) in str(caught.value)
