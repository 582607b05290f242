"""Data files that are missing or broken are refused in one line."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.bad_input.conftest import Refused, rows, write
from tests.data.class_pictures import write_classes

EMPTY = """
data=fashion_mnist data.download=false data.root=root | allow data.download=true, fetch http
data=voc data.download=false data.root=root | VOC/ by hand, so that root/VOCdevkit/VOC2007
data=coco data.root=root | 2017 pictures and annotations from http
data=fashion_scenes data.download=false data.root=root | allow data.download=true
data=cifar10 data.download=false data.root=root | allow data.download=true
data=imagefolder data.root=root | put train/CLASS/PICTURE
"""


@pytest.mark.parametrize("row", rows(EMPTY), ids=lambda row: row[0])
def test_an_empty_folder_is_refused(refused: Refused, row: list[str]) -> None:
    Path("root").mkdir()
    refused(*row)


def test_a_file_in_place_of_the_folder_is_refused(refused: Refused) -> None:
    write("here")
    refused("data.root=here", "is not a folder that")


def test_other_files_with_the_names_of_cifar10_are_refused(refused: Refused) -> None:
    batches = Path("root/cifar-10-batches-py")
    batches.mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (batches / name).write_bytes(b"not what was published")
    given = "data=cifar10 data.download=false data.root=root"
    refused(given, "is not the published file (its MD5 sum")


def test_a_picture_that_cannot_be_read_is_refused(refused: Refused) -> None:
    write_classes(Path("root"), {"train/a": [1], "train/b": [2], "test/a": [3], "test/b": []})
    Path("root/test/b/broken.jpg").write_bytes(b"no picture")
    given = "data=imagefolder data.root=root"
    refused(given, "remove or repair it", "data=root/test/b/broken.jpg")


def idx(array: np.ndarray[Any, Any], magic: int = 8) -> bytes:
    """Return a file in the format of Fashion-MNIST."""
    header = bytes([0, 0, magic, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


IMAGES, LABELS = np.zeros((6, 28, 28)), np.arange(6)
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
GOOD = {TRAIN_IMAGES: idx(IMAGES), TRAIN_LABELS: idx(LABELS)}
GOOD |= {TEST_IMAGES: idx(IMAGES), TEST_LABELS: idx(LABELS)}
PACKED = gzip.compress(idx(IMAGES))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({TEST_LABELS: None}, "fetch http"),
        ({TRAIN_IMAGES: idx(IMAGES)[:-1]}, "has 4703 bytes of data, not 4704 for [6, 28, 28]"),
        ({TRAIN_IMAGES: idx(IMAGES)[:6]}, "ends after 6 bytes, within its header"),
        ({TRAIN_LABELS: b""}, "not 00000801"),
        ({TEST_IMAGES: idx(IMAGES, magic=13)}, "begins with 00000d03, not 00000803"),
        ({TRAIN_LABELS: idx(LABELS + 5)}, "holds labels 5 to 10, not 0 to 9"),
        ({TEST_LABELS: idx(LABELS[:5])}, "holds 6 images and 5 labels"),
        (
            {TEST_IMAGES: idx(IMAGES[:, :, :14])},
            "its images have the shape (1, 28, 14), but the training images (1, 28, 28)",
        ),
        (
            {TRAIN_IMAGES: None, f"{TRAIN_IMAGES}.gz": PACKED[:-9]},
            f"{TRAIN_IMAGES}.gz: cannot be read",
        ),
    ],
)
def test_a_broken_file_of_fashion_mnist_is_refused(
    refused: Refused, changed: dict[str, bytes | None], words: str
) -> None:
    Path("root").mkdir()
    for name, content in (GOOD | changed).items():
        if content is not None:
            (Path("root") / name).write_bytes(content)
    refused("data=fashion_mnist data.download=false batch_size=2 data.root=root", words)
