from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat
from torchvision.datasets import SVHN

from ppll_cli.data.svhn import Svhn
from ppll_cli.errors import ConfigError
from tests.data.published_files import md5

Options = Callable[..., dict[str, Any]]
Parts = dict[str, bytes]
PIXELS = np.random.RandomState(0).randint(256, size=(14, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def matlab(tmp_path: Path) -> Callable[[NDArray[np.uint8], list[int]], bytes]:
    """Return a function that makes a MATLAB file.

    It has images X [32, 32, 3, N] and labels y [N, 1] from 1 to 10.
    """

    def make(pixels: NDArray[np.uint8], labels: list[int]) -> bytes:
        y = np.array(labels, np.uint8)[:, None]
        content = {"X": pixels.transpose(2, 3, 1, 0), "y": y}
        savemat(tmp_path / "scratch.mat", content, do_compression=True)
        return (tmp_path / "scratch.mat").read_bytes()

    return make


@pytest.fixture
def published(matlab: Callable[[NDArray[np.uint8], list[int]], bytes]) -> Parts:
    """Return ten training and four test images."""
    return {
        "train": matlab(PIXELS[:10], list(range(1, 11))),
        "test": matlab(PIXELS[10:], [10, 1, 2, 3]),
    }


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Parts], str]:
    """Return a function that writes files as if they were the published ones.

    It returns the root.
    """

    def write(parts: Parts) -> str:
        root = tmp_path / "root"
        root.mkdir()
        for part, content in parts.items():
            (root / f"{part}_32x32.mat").write_bytes(content)
            publish(part, content, SVHN.split_list[part][0], monkeypatch)
        return str(root)

    return write


def publish(part: str, content: bytes, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = [url, f"{part}_32x32.mat", md5(content)]
    monkeypatch.setitem(SVHN.split_list, part, entry)


def test_files_are_read_into_splits_and_not_changed(
    options: Options,
    published: Parts,
    install: Callable[[Parts], str],
    contents: Callable[[Path], Parts],
) -> None:
    root = install(published)
    before = contents(Path(root))
    dataset = Svhn(**options(root=root))
    dataset.prepare()
    splits = dataset.load()
    assert np.array_equal(splits["train"].images.numpy(), PIXELS[:10])
    assert np.array_equal(splits["test"].images.numpy(), PIXELS[10:])
    assert splits["train"].labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # label 10 is digit 0
    assert splits["test"].labels.tolist() == [0, 1, 2, 3]
    assert splits["train"].images.is_contiguous()
    assert contents(Path(root)) == before


def test_a_file_with_a_wrong_checksum_is_refused_by_name(
    options: Options, published: Parts, install: Callable[[Parts], str]
) -> None:
    root = install(published)
    path = Path(root, "test_32x32.mat")
    path.write_bytes(published["test"][:-1])
    with pytest.raises(ConfigError, match=f"{path}: is not the published file"):
        Svhn(**options(root=root)).load()


@pytest.mark.parametrize(
    ("labels", "problem"),
    [([1, 2, 3, 11], "holds labels 1 to 11"), ([1, 2, 3], "holds 4 images and 3 labels")],
)
def test_wrong_contents_are_refused_despite_a_right_checksum(
    options: Options,
    published: Parts,
    install: Callable[[Parts], str],
    matlab: Callable[[NDArray[np.uint8], list[int]], bytes],
    labels: list[int],
    problem: str,
) -> None:
    root = install(published | {"test": matlab(PIXELS[10:], labels)})
    with pytest.raises(ConfigError, match=f"test_32x32.mat in .*: {problem}"):
        Svhn(**options(root=root)).load()


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file, or so it says", b"\0" * 500])
def test_a_file_that_is_not_a_matlab_file_is_refused(
    options: Options, published: Parts, install: Callable[[Parts], str], content: bytes
) -> None:
    root = install(published | {"train": content})
    with pytest.raises(ConfigError, match=r"train_32x32.mat in .*: cannot be read"):
        Svhn(**options(root=root)).load()


def test_only_a_missing_part_is_downloaded(
    options: Options,
    published: Parts,
    install: Callable[[Parts], str],
    serve: Callable[[dict[str, bytes]], str],
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[Path], Parts],
) -> None:
    root = install(published)
    before = contents(Path(root))
    Path(root, "test_32x32.mat").unlink()
    url = serve({"test_32x32.mat": published["test"]})
    publish("test", published["test"], url, monkeypatch)
    Svhn(**options(root=root)).prepare()
    assert contents(Path(root)) == before
