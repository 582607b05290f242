"""RandAugment (arXiv 1909.13719): a few operations drawn for each image, of one strength.

The operations and their strengths are those of torchvision's RandAugment with its defaults: two
operations of magnitude 9, of 30. All is computed with whole numbers, so every device makes the same
images, bit for bit. Legend: B batch, C channels, H height, W width (pixels).
"""

from collections.abc import Callable
from math import cos, pi, sin

import torch
from torch import Tensor

from ppll_cli.data.staging import to_device

OPERATIONS = 2
"""How many operations are drawn for each image, one after the other."""

STRENGTH = 9 / 30
"""Of the greatest magnitude."""

_ONE = 1 << 16
"""Stands for 1 in numbers that have a fraction."""

SHEAR = 0.3 * STRENGTH
SHIFT = 150 / 331 * STRENGTH
"""Of the height or the width."""

ANGLE = 30 / 180 * pi * STRENGTH
ENHANCED = 0.9 * STRENGTH
SOLARISED_FROM = round(255 * (1 - STRENGTH))
KEPT_BITS = 8 - round(4 * STRENGTH)

_LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a grey picture (ITU-R 601-2), of `_ONE`."""


def rand_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augments each image by operations of its own.

    Args:
        images: uint8 [B, C, H, W].
        generator: A generator of the CPU.

    Returns:
        uint8 [B, C, H, W].
    """
    count = len(GEOMETRY) + len(COLOURS) + 1  # one leaves an image as it is
    for _ in range(OPERATIONS):
        drawn = torch.randint(count, (len(images),), generator=generator)
        signs = 2 * torch.randint(2, (len(images),), generator=generator) - 1
        images = _one_operation(images, drawn, signs)
    return images


def _one_operation(images: Tensor, drawn: Tensor, signs: Tensor) -> Tensor:
    """Args: the operation's number, int64 [B], and its direction, 1 or -1, both on the CPU."""
    changed = images.clone()
    numbers = (drawn < len(GEOMETRY)).nonzero()[:, 0]
    if len(numbers):
        chosen = to_device(numbers, images.device)
        pairs = zip(drawn[numbers].tolist(), signs[numbers].tolist(), strict=True)
        height, width = images.shape[2:]
        maps = torch.tensor([GEOMETRY[kind](sign, height, width) for kind, sign in pairs])
        moved = transformed(images.index_select(0, chosen), to_device(maps, images.device))
        changed.index_copy_(0, chosen, moved)
    for kind, operation in enumerate(COLOURS, len(GEOMETRY)):
        numbers = (drawn == kind).nonzero()[:, 0]
        if len(numbers):
            chosen = to_device(numbers, images.device)
            factors = (_ONE + signs[numbers] * round(_ONE * ENHANCED)).int()[:, None, None, None]
            pixels = images.index_select(0, chosen).int()
            made = operation(pixels, to_device(factors, images.device))
            changed.index_copy_(0, chosen, made.clamp_(0, 255).to(torch.uint8))
    return changed


# Where the pixel at row y and column x comes from: (a, b, c, d, e, f) for column a x + b y + c and
# row d x + e y + f, in fractions of `_ONE`. Centres of pixels are at halves.

Map = tuple[int, int, int, int, int, int]


def _map(a: float, b: float, d: float, e: float, centre: tuple[float, float]) -> Map:
    """A linear map about a point, given as (column, row)."""
    x, y = centre
    c, f = x - a * x - b * y, y - d * x - e * y
    numbers = [round(_ONE * each) for each in (a, b, c, d, e, f)]
    return numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]


def _shear_x(sign: int, height: int, width: int) -> Map:
    return _map(1, sign * SHEAR, 0, 1, (0, 0))


def _shear_y(sign: int, height: int, width: int) -> Map:
    return _map(1, 0, sign * SHEAR, 1, (0, 0))


def _shift_x(sign: int, height: int, width: int) -> Map:
    return (_ONE, 0, sign * int(SHIFT * width) * _ONE, 0, _ONE, 0)


def _shift_y(sign: int, height: int, width: int) -> Map:
    return (_ONE, 0, 0, 0, _ONE, sign * int(SHIFT * height) * _ONE)


def _rotate(sign: int, height: int, width: int) -> Map:
    sine, cosine = sin(sign * ANGLE), cos(ANGLE)
    return _map(cosine, -sine, sine, cosine, (width / 2, height / 2))


GEOMETRY: tuple[Callable[[int, int, int], Map], ...] = (
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
    _rotate,
)
"""Given a direction, a height and a width: where pixels come from."""


def transformed(images: Tensor, maps: Tensor) -> Tensor:
    """Images whose pixels come from elsewhere, the nearest ones; black from outside.

    Args:
        images: uint8 [B, C, H, W].
        maps: int64 [B, 6], each a `Map`.
    """
    _, channels, height, width = images.shape
    a, b, c, d, e, f = maps[:, :, None, None].unbind(1)
    x = 2 * torch.arange(width, device=images.device) + 1  # twice the centre of a pixel
    y = 2 * torch.arange(height, device=images.device)[:, None] + 1
    columns = torch.div(a * x + b * y + 2 * c, 2 * _ONE, rounding_mode="floor")
    rows = torch.div(d * x + e * y + 2 * f, 2 * _ONE, rounding_mode="floor")
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    sources = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    index = sources.flatten(1)[:, None].expand(-1, channels, -1)
    moved = images.flatten(2).gather(2, index).view(images.shape)
    return moved.masked_fill(outside[:, None], 0)


# What changes colours takes pixels int32 [B, C, H, W] and factors int32 [B, 1, 1, 1], of `_ONE`. It
# returns pixels that may lie outside of 0 to 255.


def _blended(pixels: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    """Away from another image, or towards it where the factor is below one."""
    return (other * _ONE + (pixels - other) * factors + _ONE // 2) >> 16


def _grey(pixels: Tensor) -> Tensor:
    """[B, 1, H, W]."""
    if pixels.shape[1] != len(_LUMA):
        total = pixels.sum(1, keepdim=True, dtype=torch.int32)
        return torch.div(total, pixels.shape[1], rounding_mode="floor")
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + _ONE // 2) >> 16


def brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Towards black, or away from it."""
    return _blended(pixels, torch.zeros_like(pixels), factors)


def colour(pixels: Tensor, factors: Tensor) -> Tensor:
    """Towards grey, or away from it."""
    return _blended(pixels, _grey(pixels), factors)


def contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Towards the mean grey, or away from it."""
    total = _grey(pixels).sum((1, 2, 3), keepdim=True)
    size = pixels.shape[2] * pixels.shape[3]
    mean = torch.div(2 * total + size, 2 * size, rounding_mode="floor").int()
    return _blended(pixels, mean, factors)


def sharpness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Towards a smoothed image, or away from it; the border stays."""
    if min(pixels.shape[2:]) < 3:
        return pixels
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = torch.div(total + 6, 13, rounding_mode="floor")
    return _blended(pixels, smooth, factors)


def posterise(pixels: Tensor, _: Tensor) -> Tensor:
    """Fewer bits a channel."""
    return pixels & (256 - (1 << (8 - KEPT_BITS)))


def solarise(pixels: Tensor, _: Tensor) -> Tensor:
    """Bright pixels are inverted."""
    return torch.where(pixels >= SOLARISED_FROM, 255 - pixels, pixels)


def auto_contrast(pixels: Tensor, _: Tensor) -> Tensor:
    """Each channel from 0 to 255."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    spread = torch.div(255 * (pixels - low), (high - low).clamp(min=1), rounding_mode="floor")
    return torch.where(high > low, spread, pixels)


def equalise(pixels: Tensor, _: Tensor) -> Tensor:
    """Each channel with about as many pixels of every value, as PIL's `ImageOps.equalize`."""
    flat = pixels.flatten(2)
    values = torch.arange(256, dtype=flat.dtype, device=flat.device).expand(*flat.shape[:2], 256)
    in_order = flat.sort(dim=2).values.contiguous()
    below = torch.searchsorted(in_order, values.contiguous())  # how many pixels are less
    largest = (flat == flat.amax(2, keepdim=True)).sum(2, keepdim=True)
    step = torch.div(flat.shape[2] - largest, 255, rounding_mode="floor")
    divisor = step.clamp(min=1)
    half = torch.div(divisor, 2, rounding_mode="floor")
    table = torch.div(half + below, divisor, rounding_mode="floor").clamp_(max=255)
    equal = table.gather(2, flat.long()).int()
    return torch.where(step > 0, equal, flat).view(pixels.shape)


COLOURS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    brightness,
    colour,
    contrast,
    sharpness,
    posterise,
    solarise,
    auto_contrast,
    equalise,
)
