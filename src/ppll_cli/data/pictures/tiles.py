"""Divides pictures into tiles that can be evaluated separately."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ppll_cli.data.pictures.cache import Pictures


class Span(NamedTuple):
    """A range of pixels along one side of a picture, and the used (evaluated) part of it."""

    start: int  # first pixel of the range
    stop: int  # first pixel after the range
    first: int  # first used pixel
    behind: int  # first pixel after the used pixels


class Tile(NamedTuple):
    """A rectangle of a small picture; each rectangle is evaluated separately."""

    picture: int  # index of the picture within its split, from 0
    rows: Span
    columns: Span


@dataclass(frozen=True)
class PictureSplit:
    """A split of pictures. Its samples are random patches (for training) or tiles (evaluation)."""

    pictures: Pictures
    patches: int = 0  # number of patches per epoch; 0 if the samples are tiles
    tiles: tuple[Tile, ...] = ()  # ordered by picture; empty if the samples are patches

    def __len__(self) -> int:
        return self.patches or len(self.tiles)


def spans(length: int, tile: int, overlap: int) -> Iterator[Span]:
    """Divide a side of a picture into overlapping pieces; each pixel is used in exactly one piece.

    In this piece, the pixel is at least `overlap` pixels away from the ends that are not at the
    picture's border. So a network whose receptive field extends at most `overlap` pixels to each
    side computes the same value for the pixel as on the whole picture.

    Args:
        length: Length of the side in pixels.
        tile: Largest length of a piece in pixels; more than twice `overlap`.
        overlap: Smallest distance, in pixels, of used pixels from the ends of a piece, except from
            ends at the picture's border.
    """
    start = first = 0
    while start + tile < length:
        behind = start + tile - overlap
        yield Span(start, start + tile, first, behind)
        first = behind
        start = min(behind - overlap, length - tile)
    yield Span(start, length, first, length)
