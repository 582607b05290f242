"""Draws boxes and their labels on sample pictures, and finds free places for labels.

A rectangle is (left, top, right, bottom) in pixels; it excludes column `right` and row `bottom`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rectangle = tuple[int, int, int, int]
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAGE_WIDTH = 700
"""Assumed width of a web page, in pixels; wider pictures are shown at a reduced size."""

TEXT_HEIGHT = 14
"""Height of text on a page, in pixels."""

PAPER: Colour = (255, 255, 255)
INK: Colour = (20, 20, 20)
"""Colours of the background (`PAPER`) and the text (`INK`) beside a picture."""

_MIDDLE = 125  # brightness of a background (0 to 255) above which dark text is more readable
_STEPS = 5  # the grid of places has a step of 1 / _STEPS of a label's height


def text_size(width: int) -> int:
    """Return the font size, in pixels, for text in a picture of this width.

    It is larger in a picture wider than `PAGE_WIDTH`, because a page shows the picture smaller.
    """
    return round(TEXT_HEIGHT * max(1.0, width / PAGE_WIDTH))


def font_of(size: int) -> Font:
    """Return Pillow's own font in a size in pixels, so that pictures are equal on every machine."""
    return ImageFont.load_default(size)


def label_size(text: str, font: Font, size: int) -> tuple[int, int]:
    """Return width and height, in pixels, of a label with font size `size` and its margin."""
    return int(font.getlength(text)) + 1 + size // 2, size + size // 2


def shortened(text: str, font: Font, size: int, width: int) -> str:
    """Shorten a text with an ellipsis, so that its label is at most `width` pixels wide.

    The shortest result is the ellipsis alone, even if its label is wider. `size` is the font size
    in pixels.
    """
    short, end = text, len(text)
    while end and label_size(short, font, size)[0] > width:
        end -= 1
        short = f"{text[:end]}..."
    return short


def draw_label(
    draw: ImageDraw.ImageDraw, place: Rectangle, text: str, font: Font, ground: Colour
) -> None:
    """Fill the rectangle `place` with the colour `ground`, and draw a text in its middle."""
    left, top, right, bottom = place
    draw.rectangle((left, top, right - 1, bottom - 1), fill=ground)
    middle = ((left + right) / 2, (top + bottom) / 2)
    draw.text(middle, text, fill=ink_on(ground), font=font, anchor="mm")


def ink_on(ground: Colour) -> Colour:
    """Return the text colour, dark or light, that contrasts with a background."""
    red, green, blue = ground
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > _MIDDLE else PAPER


def draw_lead(
    draw: ImageDraw.ImageDraw, place: Rectangle, box: Rectangle, colour: Colour, width: int
) -> None:
    """Draw a line, `width` pixels wide, from a label at `place` to its box if they do not touch."""
    touching = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
    if overlap(place, touching):
        return
    middle = ((place[0] + place[2]) // 2, (place[1] + place[3]) // 2)
    nearest = np.clip(middle, box[:2], np.subtract(box[2:], 1)).tolist()
    draw.line((*middle, *nearest), fill=colour, width=width)


def free_place(
    size: tuple[int, int],
    box: Rectangle,
    frame: tuple[int, int],
    taken: Sequence[Rectangle],
    *,
    below: bool = False,
) -> Rectangle | None:
    """Return a free place for a label, at its box or as near as possible; None if none is free.

    Args:
        size: Width and height of the label.
        box: The box that the label describes.
        frame: Width and height of the picture.
        taken: Places of other labels.
        below: Whether places below the box are tried before places above it.
    """
    last = frame[0] - size[0], frame[1] - size[1]  # largest left and top inside the frame
    if min(last) < 0:
        return None
    for corners in _corners(size, box, last, below=below):
        (left, top), free = corners.T, np.ones(len(corners), dtype=bool)
        right, bottom = left + size[0], top + size[1]
        for other in taken:
            apart = (left >= other[2]) | (right <= other[0])
            free &= apart | (top >= other[3]) | (bottom <= other[1])
        if free.any():
            x, y = corners[free.argmax()].tolist()
            return x, y, x + size[0], y + size[1]
    return None


def _corners(
    size: tuple[int, int], box: Rectangle, last: tuple[int, int], *, below: bool
) -> Iterator[NDArray[np.int_]]:
    # Corners [n, 2] at the box: above, below, inside and beside it. The best come first.
    (width, height), (left, top, right, bottom) = size, box
    outside, inside = [top - height, bottom], [top, bottom - height]
    rows = [*(reversed(outside) if below else outside), *inside]
    at_box = [(x, y) for y in rows for x in (left, right - width)]
    at_box += [(x, y) for y in inside for x in (right, left - width)]
    yield np.clip(at_box, 0, last)
    # Corners of a grid over the whole picture, sorted by the label's distance from the box.
    step = max(1, height // _STEPS)
    sides = (np.unique([*range(0, end, step), end]) for end in last)
    grid = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)
    away = grid + np.divide(size, 2) - np.add(box[:2], box[2:]) / 2
    yield grid[np.square(away).sum(axis=1).argsort(kind="stable")]


def overlap(one: Rectangle, other: Rectangle) -> bool:
    """Return whether two rectangles have a pixel in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def draw_border(
    picture: Image.Image, box: Rectangle, colours: tuple[Colour, Colour], width: int
) -> None:
    """Draw a border of dashes, `width` pixels wide, along the inside of a box.

    The two colours alternate. If they contrast, the border is visible on every background.
    """
    piece = picture.crop(box)
    draw, (across, down) = ImageDraw.Draw(piece), piece.size
    length = 4 * width
    for number, start in enumerate(range(0, max(piece.size), length)):
        fill, end = colours[number % 2], start + length - 1
        draw.rectangle((start, 0, end, width - 1), fill)
        draw.rectangle((start, down - width, end, down), fill)
        draw.rectangle((0, start, width - 1, end), fill)
        draw.rectangle((across - width, start, across, end), fill)
    picture.paste(piece, box[:2])
