"""Draws boxes and their labels on sample pictures, and finds free places for labels.

A rectangle is (left, top, right, bottom) in pixels; it excludes column `right` and row `bottom`.
"""

from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw, ImageFont

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
_STEP = 4  # if no place at the box is free: distance in pixels between the places to try
_ELLIPSIS = "..."


def text_size(width: int) -> int:
    """Return the font size, in pixels, for text in a picture of this width.

    A page shows a picture wider than `PAGE_WIDTH` at a reduced size, so its text must be larger.
    """
    return round(TEXT_HEIGHT * max(1.0, width / PAGE_WIDTH))


def font_of(size: int) -> Font:
    """Return the font that Pillow ships, so that pictures are equal on every machine."""
    return ImageFont.load_default(size)


def label_size(text: str, font: Font, size: int) -> tuple[int, int]:
    """Return width and height, in pixels, of a label with font size `size` and its margin."""
    return int(font.getlength(text)) + 1 + size // 2, size + size // 2


def shortened(text: str, font: Font, size: int, width: int) -> str:
    """Shorten a text with an ellipsis, so that its label is at most `width` pixels wide."""
    if label_size(text, font, size)[0] <= width:
        return text
    end = len(text)
    while end and label_size(text[:end] + _ELLIPSIS, font, size)[0] > width:
        end -= 1
    return text[:end] + _ELLIPSIS


def draw_label(
    draw: ImageDraw.ImageDraw, place: Rectangle, text: str, font: Font, ground: Colour
) -> None:
    """Draw a filled rectangle with a text in its middle."""
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
    """Draw a line from a label to its box, unless label and box touch."""
    touching = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
    if overlap(place, touching):
        return
    middle = ((place[0] + place[2]) // 2, (place[1] + place[3]) // 2)
    nearest = tuple(
        min(max(at, low), high - 1) for at, low, high in zip(middle, box[:2], box[2:], strict=True)
    )
    draw.line((middle, nearest), fill=colour, width=width)


def free_place(
    size: tuple[int, int],
    box: Rectangle,
    frame: tuple[int, int],
    taken: Sequence[Rectangle],
    *,
    below: bool = False,
) -> Rectangle | None:
    """Find a free place for a label in the picture, at or near the label's box; else return None.

    `size` is width and height of the label. `frame` is width and height of the picture. The place
    must not overlap `taken`, the places of other labels. If `below`, places below the box are tried
    first.
    """
    width, height = size
    across, down = frame[0] - width, frame[1] - height
    if min(across, down) < 0:
        return None
    for left, top in _beside(size, box, below=below):
        corner = min(max(left, 0), across), min(max(top, 0), down)
        place = (*corner, corner[0] + width, corner[1] + height)
        if not any(overlap(place, other) for other in taken):
            return place
    return _nearest(size, box, (across, down), taken)


def overlap(one: Rectangle, other: Rectangle) -> bool:
    """Return whether two rectangles have a pixel in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _beside(size: tuple[int, int], box: Rectangle, *, below: bool) -> list[tuple[int, int]]:
    """Return top left corners of places for a label: above, below, in and beside its box."""
    (width, height), (left, top, right, bottom) = size, box
    above = [(left, top - height), (right - width, top - height)]
    under = [(left, bottom), (right - width, bottom)]
    inside = [(left, top), (right - width, top), (left, bottom - height)]
    inside.append((right - width, bottom - height))
    beside = [(right, top), (left - width, top), (right, bottom - height)]
    beside.append((left - width, bottom - height))
    return [*(under + above if below else above + under), *inside, *beside]


def _nearest(
    size: tuple[int, int], box: Rectangle, last: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle | None:
    """Return the free place that is nearest to the box's middle; None if no place is free.

    The places that are tried form a grid over the picture. `last` is the top left corner of the
    label when the label is at the bottom right of the picture.
    """
    width, height = size
    lefts, tops = (np.unique([*range(0, end + 1, _STEP), end]) for end in last)
    free = np.ones((len(tops), len(lefts)), dtype=bool)
    for left, top, right, bottom in taken:
        columns = (lefts < right) & (lefts + width > left)
        free &= ~(((tops < bottom) & (tops + height > top))[:, None] & columns[None, :])
    if not free.any():
        return None
    away_x = lefts + width / 2 - (box[0] + box[2]) / 2
    away_y = tops + height / 2 - (box[1] + box[3]) / 2
    distance = np.where(free, away_x[None, :] ** 2 + away_y[:, None] ** 2, np.inf)
    row, column = np.unravel_index(int(distance.argmin()), distance.shape)
    left, top = int(lefts[column]), int(tops[row])
    return left, top, left + width, top + height


def dashed_rectangle(
    draw: ImageDraw.ImageDraw,
    box: Rectangle,
    colours: tuple[Colour, Colour],
    width: int,
) -> None:
    """Draw a border of dashes in two alternating colours, visible on every background."""
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    length = 4 * width
    for start in range(left, right + 1, length):
        end = min(start + length - 1, right)
        fill = colours[(start - left) // length % 2]
        draw.rectangle((start, top, end, min(top + width - 1, bottom)), fill=fill)
        draw.rectangle((start, max(bottom - width + 1, top), end, bottom), fill=fill)
    for start in range(top, bottom + 1, length):
        end = min(start + length - 1, bottom)
        fill = colours[(start - top) // length % 2]
        draw.rectangle((left, start, min(left + width - 1, right), end), fill=fill)
        draw.rectangle((max(right - width + 1, left), start, right, end), fill=fill)
