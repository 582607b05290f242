"""How large pictures are in a batch."""

MULTIPLE = 32
"""Height and width of a batch's images are multiples of it: maps of stride 32 have no remainder."""


def fitted(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width of a picture resized to a shorter side, unless the longer gets too long."""
    factor = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def padded(side: int) -> int:
    """Height or width, in pixels, of a batch's images whose largest picture has this one."""
    return -(-side // MULTIPLE) * MULTIPLE
