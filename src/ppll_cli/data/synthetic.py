"""Synthetic images of any size, for speed measurements and experiments."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.files import Part, fixed_random
from ppll_cli.leaves.limits import Count


@dataclass(frozen=True, kw_only=True)
class Synthetic(ImageDataset):
    """Random bytes with random labels, equal in every run. They contain nothing to learn.

    Attributes:
        size: Height and width of an image, in pixels.
        channels: Number of channels of an image.
        classes: Number of classes.
        train_samples: Number of training images.
        test_samples: Number of test images.
    """

    size: Count
    channels: Count
    classes: Annotated[int, Field(ge=2)]
    train_samples: Count
    test_samples: Count

    @property
    def class_count(self) -> int:  # noqa: D102
        return self.classes

    @property
    def channel_count(self) -> int:  # noqa: D102
        return self.channels

    def read(self, part: Part) -> Arrays:  # noqa: D102
        random = fixed_random(0 if part == "train" else 1)
        samples = self.train_samples if part == "train" else self.test_samples
        labels = random.randint(self.classes, size=samples)
        shape = (samples, self.channels, self.size, self.size)
        return Arrays(random.randint(256, size=shape, dtype=np.uint8), labels, "synthetic images")
