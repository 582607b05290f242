"""Pictures of the user's for a classifier, and what it says of them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ppll_cli.data.source import Prediction
from ppll_cli.errors import ConfigError
from ppll_cli.models.unit import ImageSpec

MODES = {1: "L", 3: "RGB"}
"""Pillow's name for pictures with so many channels."""


def fitted(picture: Image.Image, image: ImageSpec) -> Tensor:
    """A picture in the size and with the channels that a model takes, uint8 [1, C, H, W].

    A picture of another size is resized (bilinear, antialiased) until it covers the model's image,
    and what is beyond on two sides is cut off evenly.

    Raises:
        ConfigError: Pictures do not have as many channels as the model's images.
    """
    mode = MODES.get(image.channels)
    if mode is None:
        problem = f"the model takes images of {image.channels} channels"
        raise ConfigError("picture", picture.size, problem, "give tensors to the model itself")
    made, size = picture.convert(mode), (image.width, image.height)
    if made.size != size:
        made = ImageOps.fit(made, size, Image.Resampling.BILINEAR)
    pixels = np.array(made).reshape(image.height, image.width, image.channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def labelled(probabilities: Sequence[float], classes: Sequence[str]) -> Prediction:
    """The surest class, and the probability of each class, the surest first.

    Args:
        probabilities: Of the classes, by their labels.
        classes: Their names.
    """
    order = sorted(range(len(probabilities)), key=lambda label: -probabilities[label])
    sure = [
        {"label": label, "class": classes[label], "probability": probabilities[label]}
        for label in order
    ]
    return Prediction({**sure[0], "probabilities": sure})
