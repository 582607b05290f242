"""Writes files as if they had been published."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ppll_cli.data.dataset import ImageDataset

Files = dict[str, bytes]
"""The content of each file, by name."""

extracts_an_archive = pytest.mark.filterwarnings(
    "ignore:Python 3.14 will, by default, filter extracted tar:DeprecationWarning"
)
"""Marks a test in which torchvision extracts an archive: Python 3.12 and 3.13 warn of this."""


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def listed(files: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Return name and MD5 sum of each file, as torchvision lists them."""
    return [(name, md5(content)) for name, content in files.items()]


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def assert_read(
    dataset: ImageDataset, train: NDArray[Any], test: NDArray[Any], test_labels: list[int]
) -> None:
    """Check that a data set has these images, and the labels 0, 1 ... for training."""
    dataset.prepare()
    splits = dataset.load()
    assert np.array_equal(splits["train"].images.numpy(), train)
    assert np.array_equal(splits["test"].images.numpy(), test)
    assert splits["train"].labels.tolist() == list(range(len(train)))
    assert splits["test"].labels.tolist() == test_labels
    assert splits["train"].images.is_contiguous()


def packed(folder: str, files: Mapping[str, bytes]) -> bytes:
    """Return an archive with the files in a folder."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()
