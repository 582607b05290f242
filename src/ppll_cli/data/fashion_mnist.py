"""Fashion-MNIST: 60,000 training and 10,000 test grey images of clothes, 28x28, 10 classes."""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.download import one_line, provide
from ppll_cli.data.files import PUBLISHED, Part

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package dataset-fashion-mnist."""

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
RAW = "FashionMNIST/raw"
"""The folder, relative to the data root, into which torchvision downloads."""

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_UNSIGNED_BYTE = 8
_MOST_BYTES = 1 << 30
"""Largest size of a file's data, so that a small `.gz` cannot fill the memory. The training images
need less than 5%."""


class FashionMnist(ImageDataset):
    """Fashion-MNIST from four idx files, plain or `.gz`.

    The files are in the data root or in its folder FashionMNIST/raw. If `root` is None, they may
    also be in the folder of Debian's package. Headers and lengths are checked; MD5 sums are not.
    """

    # No MD5 sums, because compressing a file again changes its sum.

    class_count = 10
    class_names = CLASSES
    channel_count = 1
    remedy = PUBLISHED

    def prepare(self) -> None:  # noqa: D102
        if self.files() is None:
            names = [f"{RAW}/{name}" for part in FILES.values() for name in part]
            provide(self, names, URL, _fetch)

    def read(self, part: Part) -> Arrays:  # noqa: D102
        files = self.files()
        if files is None:
            raise self.fault(self.folder, f"has no {FILES['train'][0]}")
        image_file, label_file = (files[name] for name in FILES[part])
        images, labels = self._read_idx(image_file, 3), self._read_idx(label_file, 1)
        source = f"{image_file.name}, {label_file.name} in {image_file.parent}"
        return Arrays(images[:, None], labels, source)

    def files(self) -> dict[str, Path] | None:
        """Return the files' paths, by name without `.gz`, in the first folder that has all files.

        Return None if no folder has all files.
        """
        folders = [self.folder / RAW, self.folder]
        if self.root is None:
            folders.append(DEBIAN)
        for folder in folders:
            files = {name: _plain_or_gz(folder, name) for part in FILES.values() for name in part}
            found = {name: path for name, path in files.items() if path}
            if len(found) == len(files):
                return found
        return None

    def _read_idx(self, path: Path, dimensions: int) -> NDArray[np.uint8]:
        try:
            return read_idx(path, dimensions)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise self.fault(path, f"cannot be read ({one_line(error)})") from error


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, plain or `.gz`, to a read-only array.

    `dimensions` is the number of dimensions that the file must have.
    The header has two zero bytes, the code of the type, the number of dimensions, and the size of
    each dimension as a big-endian 32-bit integer.

    Raises:
        ValueError: The header is wrong, or the length of the data does not match it, or there is
            more than 1 GiB of data.
        OSError: The file cannot be read, or is not compressed as its suffix says.
        EOFError: The compressed file ends too early.
        zlib.error: The compressed data are damaged.
    """
    packed = path.suffix == ".gz"
    header, magic = 4 + 4 * dimensions, bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    with gzip.open(path) if packed else path.open("rb") as file:
        begin = file.read(header)
        if begin[:4] != magic:
            raise ValueError(f"begins with {begin[:4].hex()}, not {magic.hex()}")
        if len(begin) < header:
            raise ValueError(f"ends after {len(begin)} bytes, within its header")
        shape = [int(length) for length in np.frombuffer(begin, ">u4", dimensions, offset=4)]
        length = prod(shape)
        content = file.read(min(length, _MOST_BYTES) + 1)
        more = " or more" if file.read(1) else ""
    if len(content) != length or more:
        raise ValueError(f"has {len(content)} bytes of data{more}, not {length} for {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _plain_or_gz(folder: Path, name: str) -> Path | None:
    # The plain file is read faster.
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _fetch(folder: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(folder, download=True)
