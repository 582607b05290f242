"""Paints scenes with items of Fashion-MNIST that overlap, on cluttered backgrounds.

Legend: I number of items, S side of a scene, h and w height and width of a painted item (pixels).
"""

from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ppll_cli.data.pictures.cache import Bytes
from ppll_cli.data.scenes.index import Object

MOST = 8
"""Largest number of items in a scene."""

SMALLEST, LARGEST, LONGEST = 14.0, 0.6, 0.75
"""The size of an item is the side of a square with the area of the item's box. `SMALLEST` is the
smallest size in pixels. `LARGEST` is the largest size, as a fraction of S. `LONGEST` is the largest
length of the box's longer side, as a fraction of S."""

VISIBLE = 0.6
"""Smallest fraction of an item's pixels that must remain visible."""

MOST_COMMON = 0.4
"""Largest intersection over union of two boxes. Above it, a detector may drop one of the boxes."""

CONTRAST = 55.0
"""Wanted distance between the mean colours of an item and its background (from 0 to 255)."""

_ITEM = 28
_THRESHOLD = 16  # pixels from this grey value on belong to an item (see also `_cutout`)
_PLACES = 12  # number of places that are tried before an item is left out
_NOISE = 9  # largest noise that is added to a colour value (0 to 255)

Floats = NDArray[np.float32]


class Painted(NamedTuple):
    """A painted scene, uint8 [S, S, 3], and its objects."""

    pixels: Bytes
    objects: list[Object]


class Cutout(NamedTuple):
    """A resized item: grey value and opacity of each pixel, in [0, 1], float32 [h, w]."""

    grey: Floats
    cover: Floats


def paint(random: RandomState, items: Bytes, labels: NDArray[np.int64], side: int) -> Painted:
    """Paint up to 8 random items on a cluttered background, small items over large ones.

    An item for which no place is found is left out.

    Args:
        random: The source of all random numbers.
        items: The items to choose from, uint8 [I, 28, 28].
        labels: The classes of `items`, int64 [I].
        side: Height and width of the scene in pixels.
    """
    canvas = _background(random, side)
    for _ in range(random.randint(3, 9)):
        _paint_fragment(random, canvas, items[random.randint(len(items))])
    owner = np.full((side, side), -1)  # index of the item that each pixel shows; -1: background
    areas: list[int] = []
    objects: list[Object] = []
    count = random.randint(1, MOST + 1)
    sizes = np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST * side), count))
    for size in sorted(sizes.tolist(), reverse=True):
        chosen = random.randint(len(items))
        cutout = _cutout(items[chosen], size, LONGEST * side, mirrored=random.randint(2) == 1)
        if cutout is None:
            continue
        solid = cutout.cover >= 0.5
        height, width = solid.shape
        for _ in range(_PLACES):
            top, left = (random.randint(side - length + 1) for length in (height, width))
            box = float(left), float(top), float(left + width), float(top + height)
            here = (slice(top, top + height), slice(left, left + width))
            if _fits(owner, here, solid, areas) and all(
                _common(box, other[:4]) <= MOST_COMMON for other in objects
            ):
                _blend(canvas[here], cutout, _tint(random, canvas[here], cutout))
                owner[here][solid] = len(areas)
                areas.append(int(solid.sum()))
                objects.append((*box, int(labels[chosen]), False))
                break
    canvas += random.randint(-_NOISE, _NOISE + 1, canvas.shape, dtype=np.int8)
    return Painted(canvas.round().clip(0, 255).astype(np.uint8), objects)


def _background(random: RandomState, side: int) -> Floats:
    few = random.randint(40, 216, (random.randint(2, 5), random.randint(2, 5), 3))
    soft = Image.fromarray(few.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    shapes = soft.copy()
    draw = ImageDraw.Draw(shapes)
    for _ in range(random.randint(5, 16)):
        colour = tuple(random.randint(20, 236, 3).tolist())
        ends = random.randint(-side // 8, side + side // 8, 2)
        length = np.exp(random.uniform(np.log(6), np.log(side * 0.7), 2)).astype(int)
        box = [*ends.tolist(), *(ends + length).tolist()]
        kind = random.randint(4)
        if kind == 0:
            draw.rectangle(box, fill=colour)
        elif kind == 1:
            draw.ellipse(box, outline=colour, width=int(random.randint(1, 5)))
        elif kind == 2:
            draw.line(random.randint(0, side, 4).tolist(), fill=colour, width=random.randint(1, 6))
        else:
            draw.polygon([*box, *random.randint(0, side, 2).tolist()], fill=colour)
    mixed = Image.blend(soft, shapes, float(random.uniform(0.35, 0.7)))
    return np.asarray(mixed, dtype=np.float32).copy()


def _paint_fragment(random: RandomState, canvas: Floats, item: Bytes) -> None:
    top, left = random.randint(4, _ITEM - 14, 2)
    high, wide = random.randint(6, 11, 2)  # of 28 pixels: too few to recognise the item
    piece = Image.fromarray(item[top : top + high, left : left + wide])
    factor = np.exp(random.uniform(np.log(1.0), np.log(4.0))) * len(canvas) / 160
    size = (max(2, int(wide * factor)), max(2, int(high * factor)))
    grey = _unit(piece.resize(size, Image.Resampling.BILINEAR))
    cutout = Cutout(grey, np.clip(4 * grey, 0, 1))
    down, right = (random.randint(len(canvas) - length + 1) for length in grey.shape)
    here = canvas[down : down + grey.shape[0], right : right + grey.shape[1]]
    _blend(here, cutout, random.uniform(20, 255, 3).astype(np.float32))


def _cutout(item: Bytes, size: float, most: float, *, mirrored: bool) -> Cutout | None:
    inside = item >= _THRESHOLD
    across, down = (
        np.logical_or.accumulate(inside, axis)
        & np.flip(np.logical_or.accumulate(np.flip(inside, axis), axis), axis)
        for axis in (1, 0)
    )
    # Also dark pixels between bright ones, in their row and in their column, belong to the item.
    solid = inside | (across & down)
    if not solid.any():
        return None
    box = _around(solid)
    layers = []
    sides = solid[box].shape
    factor = min(size / np.sqrt(sides[0] * sides[1]), most / max(sides))
    height, width = (max(1, round(length * factor)) for length in sides)
    for layer in (item, solid * np.uint8(255)):
        image = Image.fromarray(layer[box]).resize((width, height), Image.Resampling.BICUBIC)
        pixels = _unit(image)
        layers.append(pixels[:, ::-1] if mirrored else pixels)
    cutout = Cutout(*layers)
    solid = cutout.cover >= 0.5
    if min(solid.shape) < 2 or not solid.any():
        return None
    box = _around(solid)
    return Cutout(cutout.grey[box], cutout.cover[box])


def _unit(grey: Image.Image) -> Floats:
    values: Floats = np.asarray(grey, dtype=np.float32)
    return values / np.float32(255)


def _around(solid: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(solid.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _fits(
    owner: NDArray[np.int_], here: tuple[slice, slice], solid: NDArray[np.bool_], areas: list[int]
) -> bool:
    seen, lost = (
        np.bincount(pixels[pixels >= 0], minlength=len(areas))
        for pixels in (owner, owner[here][solid])
    )
    return bool(np.all(seen - lost >= VISIBLE * np.array(areas)))  # areas count covered pixels too


def _common(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both)


def _tint(random: RandomState, behind: Floats, cutout: Cutout) -> Floats:
    weight = cutout.cover / cutout.cover.sum()
    ground = (behind * weight[..., None]).sum((0, 1))
    shade = float((_shade(cutout.grey) * weight).sum())
    tints = random.uniform(30, 255, (8, 3)).astype(np.float32)
    distances = np.abs(shade * tints - ground).mean(axis=1)
    enough = np.flatnonzero(distances >= CONTRAST)
    tint: Floats = tints[enough[0] if len(enough) else distances.argmax()]
    return tint


def _shade(grey: Floats) -> Floats:
    return np.float32(0.3) + np.float32(0.7) * grey


def _blend(behind: Floats, cutout: Cutout, tint: Floats) -> None:
    cover = cutout.cover[..., None]
    behind[:] = (1 - cover) * behind + cover * _shade(cutout.grey)[..., None] * tint
