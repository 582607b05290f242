import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10

from ppll_cli.data.cifar10 import Cifar10
from ppll_cli.errors import ConfigError
from tests.data.published_files import (
    Files,
    assert_read,
    extracts_an_archive,
    listed,
    md5,
    packed,
    write,
)

Options = Callable[..., dict[str, Any]]
PIXELS = np.random.RandomState(0).randint(256, size=(12, 3, 32, 32), dtype=np.uint8)
FOLDER = "cifar-10-batches-py"


def batch(pixels: NDArray[np.uint8], labels: list[int]) -> bytes:
    """Return a file as pickled by Python 2.

    It has NumPy's old module name, and integers as flags of a dtype.
    """
    content = pickle.dumps(
        {"labels": labels, "data": pixels.reshape(len(pixels), pixels[0].size)}, 2
    )
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return content.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")


def published() -> Files:
    """Return five training files and a test file of two images each.

    Labels are 0 to 9, then 0 and 1.
    """
    files = {
        f"data_batch_{n + 1}": batch(PIXELS[2 * n : 2 * n + 2], [2 * n, 2 * n + 1])
        for n in range(5)
    }
    names = {"label_names": [f"class {n}" for n in range(10)]}
    return files | {"test_batch": batch(PIXELS[10:], [0, 1]), "batches.meta": pickle.dumps(names)}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Files], str]:
    """Return a function that writes files as if they were the published ones.

    It returns the root.
    """

    def install(files: Files) -> str:
        write(tmp_path / FOLDER, files)
        publish(files, monkeypatch)
        return str(tmp_path)

    return install


def publish(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    *train, test, _ = listed(files)
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setitem(CIFAR10.meta, "md5", md5(files["batches.meta"]))


def test_files_are_read_into_splits_and_not_changed(
    options: Options, install: Callable[[Files], str], contents: Callable[[Path], Files]
) -> None:
    root = install(published())
    before = contents(Path(root))
    assert_read(Cifar10(**options(root=root)), PIXELS[:10], PIXELS[10:], [0, 1])
    assert contents(Path(root)) == before


def test_numpys_warning_about_old_pickles_is_not_shown(
    options: Options, install: Callable[[Files], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy 2.4.0 to 2.4.4 warn for each file that `align` is no boolean."""
    root, unpickle = install(published()), pickle.load

    def complaining(*args: Any, **keys: Any) -> Any:
        warnings.warn("dtype(): align should be passed as Python or NumPy boolean", stacklevel=1)
        return unpickle(*args, **keys)

    monkeypatch.setattr(pickle, "load", complaining)
    Cifar10(**options(root=root)).load()  # the test would fail if there were a warning


def test_a_file_with_a_wrong_checksum_is_refused_before_unpickling(
    options: Options, install: Callable[[Files], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = install(published())
    path = Path(root, FOLDER, "data_batch_3")
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(ConfigError, match=f"{path}: is not the published file") as caught:
        Cifar10(**options(root=root)).load()
    assert (caught.value.key, caught.value.value) == ("data.root", root)


@pytest.mark.parametrize("name", ["data_batch_5", "test_batch", "batches.meta"])
def test_a_missing_file_is_refused_by_name(
    options: Options, install: Callable[[Files], str], name: str
) -> None:
    root = install(published())
    Path(root, FOLDER, name).unlink()
    dataset = Cifar10(**options(root=root, download=False))
    with pytest.raises(ConfigError, match=f"no {FOLDER}/{name} there"):
        dataset.prepare()
    with pytest.raises(ConfigError, match=f"{name}: is missing"):
        dataset.load()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"data_batch_2": batch(PIXELS[2:4], [2, 10])}, "holds labels 0 to 10, not 0 to 9"),
        ({"data_batch_2": batch(PIXELS[2:4], [2])}, "holds 10 images and 9 labels"),
        ({"data_batch_2": batch(PIXELS[2:4, 0], [2, 3])}, "cannot be read"),
        ({"data_batch_2": published()["data_batch_2"][:-20]}, "cannot be read"),
        ({"data_batch_2": pickle.dumps({"data": PIXELS[2:4].reshape(2, -1)})}, "cannot be read"),
        ({"data_batch_2": b"not a pickle"}, "cannot be read"),
        ({"batches.meta": pickle.dumps({})}, "cannot be read"),
    ],
)
def test_wrong_contents_are_refused_despite_a_right_checksum(
    options: Options, install: Callable[[Files], str], change: Files, problem: str
) -> None:
    root = install(published() | change)
    with pytest.raises(ConfigError, match=problem) as caught:
        Cifar10(**options(root=root)).load()
    assert next(iter(change)) in str(caught.value)


@extracts_an_archive
def test_the_archive_is_downloaded_unpacked_and_removed(
    options: Options,
    cache: Path,
    serve: Callable[[dict[str, bytes]], str],
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[Path], Files],
) -> None:
    files = published()
    archive = packed(FOLDER, files | {"readme.html": b"unused"})
    publish(files, monkeypatch)
    monkeypatch.setattr(CIFAR10, "url", serve({CIFAR10.filename: archive}))
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    dataset = Cifar10(**options())
    dataset.prepare()
    assert contents(cache) == {f"{FOLDER}/{name}": content for name, content in files.items()}
    assert len(dataset.load()["train"].labels) == 10
