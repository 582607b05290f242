"""Digits: 1797 handwritten digits, grey, 8x8 pixels, 10 classes; they come with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.files import Part, fixed_random

TRAIN_SAMPLES = 1437
_SPLIT_SEED = 0
_DARKEST = 16


class Digits(ImageDataset):
    """scikit-learn's digits, which need no file and no network.

    Their files come writer by writer, so the first 1437 of a fixed permutation are `train` and
    the other 360 `test`. Values 0 to 16 become 0 to 255, rounded.
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
    """One row a digit: 64 values and its label, int64 [1797, 65].

    Read from the file in which scikit-learn ships them: importing it takes seconds, in the parent
    and in the first worker.
    """
    package = find_spec("sklearn")
    folders = (package.submodule_search_locations if package else None) or []
    for folder in folders:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.int64)
