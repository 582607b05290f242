"""Which piece of a picture becomes the image. Imports no torch: loaders are to start quickly."""

from collections.abc import Sequence
from math import exp, log, sqrt

from ppll_cli.data.pictures.files import Box

TRIES = 10
"""How many random pieces are tried at most before the middle is taken."""

RATIOS = (3 / 4, 4 / 3)
"""Least and greatest width of a random piece, divided by its height."""

Draw = tuple[float, float, float, float]
"""Numbers in [0, 1) that decide on a random piece: its area, its ratio, its left and top edge."""


def middle(width: int, height: int, part: float) -> Box:
    """A square in the middle of a picture.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        part: Side of the square, where the picture's shorter side is 1.
    """
    side = part * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_piece(width: int, height: int, scale: tuple[float, float], draws: Sequence[Draw]) -> Box:
    """A piece of random area, ratio and place, as Inception was trained on (arXiv 1409.4842).

    It is what torchvision's RandomResizedCrop takes, but for rounding to whole pixels.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        scale: Least and greatest part of the picture's area.
        draws: Numbers for each try. If no try lies within the picture, the piece is the largest
            one in the middle that has an allowed ratio.
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
