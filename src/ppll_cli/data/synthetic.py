"""Synthetic images of any size, for speed measurements and experiments."""

from dataclasses import dataclass

import numpy as np

from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.files import Part, check_at_least, fixed_random


@dataclass(frozen=True, kw_only=True)
class Synthetic(ImageDataset):
    """Random bytes with random labels, equal in every run. They contain nothing to learn."""

    size: int  # height and width of an image, in pixels
    channels: int
    classes: int  # at least 2
    train_samples: int
    test_samples: int

    @property
    def class_count(self) -> int:  # noqa: D102
        return self.classes

    @property
    def channel_count(self) -> int:  # noqa: D102
        return self.channels

    def __post_init__(self) -> None:
        check_at_least("classes", self.classes, 2)
        for key in ("size", "channels", "train_samples", "test_samples"):
            check_at_least(key, getattr(self, key), 1)
        super().__post_init__()

    def read(self, part: Part) -> Arrays:  # noqa: D102
        random = fixed_random(0 if part == "train" else 1)
        samples = self.train_samples if part == "train" else self.test_samples
        labels = random.randint(self.classes, size=samples)
        shape = (samples, self.channels, self.size, self.size)
        return Arrays(random.randint(256, size=shape, dtype=np.uint8), labels, "synthetic images")
