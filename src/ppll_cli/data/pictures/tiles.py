"""Cutting a picture into tiles that can be evaluated alone."""

from collections.abc import Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """A piece of one side of a picture, in pixels, and which of them count."""

    start: int
    stop: int
    first: int
    behind: int


def spans(length: int, tile: int, overlap: int) -> Iterator[Span]:
    """Pieces of at most `tile` pixels, of which each pixel counts in one.

    What counts is `overlap` pixels away from where its piece was cut, and may reach the picture's
    own border. A net that looks no further makes of it what it makes of the whole picture.

    Args:
        length: Of the side.
        tile: More than twice the overlap.
        overlap: See above.
    """
    start = first = 0
    while start + tile < length:
        behind = start + tile - overlap
        yield Span(start, start + tile, first, behind)
        first = behind
        start = min(behind - overlap, length - tile)
    yield Span(start, length, first, length)
