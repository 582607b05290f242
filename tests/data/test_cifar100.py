"""Tests where CIFAR-100 differs from CIFAR-10: other files, and two labels for each picture."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from ppll_cli.data.cifar100 import Cifar100
from ppll_cli.errors import ConfigError
from tests.data.published_files import extracts_an_archive, listed, md5, packed, write

Options = Callable[..., dict[str, Any]]
FOLDER = "cifar-100-python"
PIXELS = np.random.RandomState(0).randint(256, size=(8, 3, 32, 32), dtype=np.uint8)


def contents() -> dict[str, bytes]:
    """Return six training pictures and two test pictures. Coarse labels differ from fine ones."""
    files = {}
    for name, pixels, labels in (
        ("train", PIXELS[:6], [0, 99, 5, 5, 42, 7]),
        ("test", PIXELS[6:], [99, 0]),
    ):
        coarse = [label // 5 for label in labels]
        data = {"fine_labels": labels, "coarse_labels": coarse, "data": pixels.reshape(-1, 3072)}
        files[name] = pickle.dumps(data, 2)
    names = [f"class {n}" for n in range(100)]
    return {**files, "meta": pickle.dumps({"fine_label_names": names})}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return files that torchvision regards as the published ones."""
    made = contents()
    train, test, (_, meta) = listed(made)
    monkeypatch.setattr(CIFAR100, "train_list", [train])
    monkeypatch.setattr(CIFAR100, "test_list", [test])
    monkeypatch.setitem(CIFAR100.meta, "md5", meta)
    return made


def test_fine_labels_are_used(options: Options, files: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path / FOLDER, files)
    dataset = Cifar100(**options(root=str(tmp_path)))
    dataset.prepare()
    splits = dataset.load()
    assert dataset.task.classes == 100
    assert splits["train"].labels.tolist() == [0, 99, 5, 5, 42, 7]
    assert splits["test"].labels.tolist() == [99, 0]
    assert np.array_equal(splits["test"].images.numpy(), PIXELS[6:])
    (tmp_path / FOLDER / "train").write_bytes(files["train"][:-1])
    with pytest.raises(ConfigError, match=r"cifar-100-python/train: is not the published file"):
        dataset.load()


@extracts_an_archive
def test_the_archive_is_downloaded(
    options: Options,
    files: dict[str, bytes],
    cache: Path,
    serve: Callable[[dict[str, bytes]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = packed(FOLDER, files)
    monkeypatch.setattr(CIFAR100, "url", serve({CIFAR100.filename: archive}))
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
    Cifar100(**options()).prepare()
    assert {path.name for path in (cache / FOLDER).iterdir()} == set(files)
