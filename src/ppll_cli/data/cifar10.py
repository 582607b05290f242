"""CIFAR-10: 50,000 training and 10,000 test colour photographs, 32x32 pixels, 10 classes."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from ppll_cli.data.files import Part
from ppll_cli.data.published import Content, Published


class Cifar10(Published):
    """CIFAR-10 from its files for Python, in the folder `cifar-10-batches-py` of the data root."""

    original = "CIFAR10"
    class_count = 10
    class_names: ClassVar[tuple[str, ...]] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    channel_count = 3

    def files(self, part: Part) -> Mapping[str, str]:  # noqa: D102
        cifar = self.published
        listed = [*self.listed(part), (cifar.meta["filename"], cifar.meta["md5"])]
        return {f"{cifar.base_folder}/{name}": md5 for name, md5 in listed}

    def open(self, part: Part, folder: Path, *, download: bool = False) -> Content:  # noqa: D102
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn about the way in which Python 2 pickled a dtype.
            warnings.filterwarnings("ignore", message=".*align should be passed.*")
            data = self.only(part)(folder, train=part == "train", download=download)
        return data.data.transpose(0, 3, 1, 2), np.asarray(data.targets)
