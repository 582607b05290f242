"""Prepares a user's picture for a classifier."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.models.unit import ImageSpec

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode of a picture, by its number of channels."""


def fitted(picture: Image.Image, image: ImageSpec) -> Tensor:
    """Convert a picture to the size and the channels of a model's images, uint8 [1, C, H, W].

    A picture of another size is resized (bilinear, antialiased) until it just covers the model's
    image, and cropped to its middle.

    Raises:
        ConfigError: The model's images have neither 1 nor 3 channels.
    """
    mode = MODES.get(image.channels)
    if mode is None:
        problem = f"the model takes images with {image.channels} channels"
        raise ConfigError("picture", picture.size, problem, "pass tensors to the model itself")
    made, size = picture.convert(mode), (image.width, image.height)
    if made.size != size:
        made = ImageOps.fit(made, size, Image.Resampling.BILINEAR)
    pixels = np.array(made).reshape(image.height, image.width, image.channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
