"""Chooses which piece of a picture becomes the image; no torch, so that loaders start quickly."""

from collections.abc import Sequence
from math import exp, log, sqrt

from ppll_cli.data.pictures.files import Box

TRIES = 10
"""Largest number of random pieces that are tried before a piece in the middle is used."""

RATIOS = (3 / 4, 4 / 3)
"""Smallest and largest ratio of a random piece's width to its height."""

Draw = Sequence[float]
"""Four random numbers in [0, 1) for the area, the ratio, and the left and top edge of a piece."""


def middle(width: int, height: int, part: float) -> Box:
    """Return the square in a picture's middle whose side is `part` times the shorter side."""
    side = part * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_piece(width: int, height: int, scale: tuple[float, float], draws: Sequence[Draw]) -> Box:
    """Return a piece of random area, ratio and position, as in the training of Inception.

    The method is from arXiv 1409.4842. torchvision's RandomResizedCrop does the same, but rounds to
    whole pixels. `scale` has the smallest and largest area, as fractions of the picture's area.
    `draws` has the random numbers of each try. If no try fits into the picture, the result is the
    largest piece in the middle with an allowed ratio.
    """
    low, high = (log(ratio) for ratio in RATIOS)
    for area, ratio, left, top in draws:
        wanted = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        shape = exp(low + (high - low) * ratio)
        wide, tall = sqrt(wanted * shape), sqrt(wanted / shape)
        if wide <= width and tall <= height:
            left, top = left * (width - wide), top * (height - tall)
            return left, top, left + wide, top + tall
    wide, tall = min(width, height * RATIOS[1]), min(height, width / RATIOS[0])
    left, top = (width - wide) / 2, (height - tall) / 2
    return left, top, left + wide, top + tall
