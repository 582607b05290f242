"""Sizes of pictures in a batch."""

MULTIPLE = 32
"""Height and width of a batch's images are multiples of this number, because of maps of stride
32."""


def fitted(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return height and width of a resized picture, in pixels.

    The shorter side becomes `short_side`, or less if the longer side would exceed `long_side`.
    """
    factor = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def padded(side: int) -> int:
    """Round height or width of the largest picture of a batch up to a multiple of `MULTIPLE`."""
    return -(-side // MULTIPLE) * MULTIPLE
