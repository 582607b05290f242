"""Digits: 1797 handwritten digits, grey, 8x8 pixels, 10 classes; they come with scikit-learn."""

import numpy as np

from ppll_cli.data.dataset import Arrays, ImageDataset, Part, fixed_random

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
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = fixed_random(_SPLIT_SEED).permutation(len(digits.target))
        chosen = order[:TRAIN_SAMPLES] if part == "train" else order[TRAIN_SAMPLES:]
        images = np.rint(digits.images[chosen] * (255 / _DARKEST)).astype(np.uint8)
        return Arrays(images[:, None], digits.target[chosen], "scikit-learn's digits")
