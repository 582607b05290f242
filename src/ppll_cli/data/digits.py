"""Digits: 1797 grey images of handwritten digits, 8x8, 10 classes, shipped with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.files import Part, fixed_random

TRAIN_SAMPLES = 1437
_SPLIT_SEED = 0
_DARKEST = 16


class Digits(ImageDataset):
    """The digits in scikit-learn's package. Nothing is downloaded.

    The package sorts the digits by writer, so a fixed permutation mixes them. Then the first 1437
    digits are `train` and the last 360 `test`. Values from 0 to 16 are scaled to 0 to 255 and
    rounded.
    """

    class_count = 10
    channel_count = 1

    def read(self, part: Part) -> Arrays:  # noqa: D102
        table = _table()
        order = fixed_random(_SPLIT_SEED).permutation(len(table))
        chosen = table[order[:TRAIN_SAMPLES] if part == "train" else order[TRAIN_SAMPLES:]]
        images = np.rint(chosen[:, :-1] * (255 / _DARKEST)).astype(np.uint8)
        return Arrays(images.reshape(-1, 1, 8, 8), chosen[:, -1], "scikit-learn's digits")


def _table() -> np.ndarray:
    # The result is [1797, 65]: each row has the 64 values of a digit, and its label.
    # Importing scikit-learn takes seconds, so read its file directly if it is found.
    package = find_spec("sklearn")
    folders = (package.submodule_search_locations if package else None) or []
    for folder in folders:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.int64)
