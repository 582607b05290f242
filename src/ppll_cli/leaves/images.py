"""Describes the images that a model is built for. Imports no torch."""

from dataclasses import dataclass

IMAGE = "image"
"""Name of a batch's images, float [B, C, H, W], normalised."""


@dataclass(frozen=True)
class ImageSpec:
    """The images that a model is built for; height and width are in pixels.

    Normalisation subtracts `mean` from pixels in [0, 1], and then divides by `std`. Each has one
    value, or one value per channel.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
