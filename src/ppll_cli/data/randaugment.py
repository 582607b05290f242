"""RandAugment (arXiv 1909.13719): applies random operations of fixed strength to each image.

Operations and strengths are the defaults of torchvision's RandAugment: two operations of magnitude
9 out of 30. Arithmetic on pixels uses integers, so every device makes bit-identical images.

The operations on colours (`COLOURS`) take pixels, int32 [B, C, H, W], and factors, int32
[B, 1, 1, 1], in fixed point with 16 fractional bits. If an operation blends an image with another
one, a factor of 1 leaves the image unchanged, and a factor of 0 gives the other image. The values
of the pixels that an operation returns may be outside of 0 to 255. Legend: B batch, C channels, H
height, W width (pixels).
"""

from collections.abc import Callable
from math import cos, pi, sin

import torch
from torch import Tensor

from ppll_cli.data.staging import to_device

OPERATIONS = 2

STRENGTH = 9 / 30
"""Magnitude of the operations, as a fraction of the largest magnitude."""

_ONE = 1 << 16
"""The number 1 in fixed point, with 16 fractional bits."""

SHEAR = 0.3 * STRENGTH
"""Shift of a row (or column), divided by its distance from the top (or left) edge."""
SHIFT = 150 / 331 * STRENGTH
"""Shift of an image, as a fraction of its height or width."""

ANGLE = 30 / 180 * pi * STRENGTH
"""Angle of a rotation, in radians."""
ENHANCED = 0.9 * STRENGTH
"""Brightness, colour, contrast and sharpness change by a factor of 1 plus or minus this number."""
SOLARISED_FROM = round(255 * (1 - STRENGTH))
"""Smallest pixel value that solarising inverts."""
KEPT_BITS = 8 - round(4 * STRENGTH)
"""Number of bits that posterising keeps of a pixel value."""

_LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a grey value (ITU-R 601-2), in fixed point."""


def rand_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment each image, uint8 [B, C, H, W], by its own random operations."""
    count = len(GEOMETRY) + len(COLOURS) + 1  # the last operation leaves an image unchanged
    for _ in range(OPERATIONS):
        drawn = torch.randint(count, (len(images),), generator=generator)
        signs = 2 * torch.randint(2, (len(images),), generator=generator) - 1
        images = _one_operation(images, drawn, signs)
    return images


def _one_operation(images: Tensor, drawn: Tensor, signs: Tensor) -> Tensor:
    # `drawn` has indices in GEOMETRY + COLOURS; `signs` has 1 or -1 (-1 makes an image darker).
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


Map = tuple[int, int, int, int, int, int]
"""The numbers (a, b, c, d, e, f) of an affine map, in fixed point.

The new pixel at column x and row y is the old pixel at column a x + b y + c and row d x + e y + f.
The centre of the first pixel is at (1/2, 1/2).
"""


def _map(a: float, b: float, c: float, d: float, e: float, f: float) -> Map:
    numbers = [round(_ONE * each) for each in (a, b, c, d, e, f)]
    return numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]


def _rotation(sign: int, height: int, width: int) -> Map:
    sine, cosine = sin(sign * ANGLE), cos(ANGLE)
    x, y = width / 2, height / 2
    return _map(cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)


GEOMETRY: tuple[Callable[[int, int, int], Map], ...] = (
    lambda sign, height, width: _map(1, sign * SHEAR, 0, 0, 1, 0),
    lambda sign, height, width: _map(1, 0, 0, sign * SHEAR, 1, 0),
    lambda sign, height, width: _map(1, 0, sign * int(SHIFT * width), 0, 1, 0),
    lambda sign, height, width: _map(1, 0, 0, 0, 1, sign * int(SHIFT * height)),
    _rotation,
)
"""Shear, shift (each horizontal, then vertical) and rotation. The functions return the map for a
direction (1 or -1) and the height and width of an image.
"""


def transformed(images: Tensor, maps: Tensor) -> Tensor:
    """Transform images by affine maps; take the nearest pixel, or black outside of the image.

    Images are uint8 [B, C, H, W]. `maps` has the `Map` of each image, int64 [B, 6].
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = maps[:, :, None, None].unbind(1)
    x = 2 * torch.arange(width, device=images.device) + 1  # twice the position of pixels' centres
    y = 2 * torch.arange(height, device=images.device)[:, None] + 1
    columns = torch.div(a * x + b * y + 2 * c, 2 * _ONE, rounding_mode="floor")
    rows = torch.div(d * x + e * y + 2 * f, 2 * _ONE, rounding_mode="floor")
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    moved = picked(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return moved.masked_fill(outside[:, None], 0)


def picked(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Make new images: each new pixel is the old pixel at the given row and column.

    Images are [B, C, H, W]. `rows` and `columns`, int64, can be broadcast together to [B, H, W].
    """
    sources = (rows * images.shape[3] + columns).flatten(1)
    index = sources[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(images.shape)


def _blended(pixels: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    return (other * _ONE + (pixels - other) * factors + _ONE // 2) >> 16


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[1] != len(_LUMA):
        total = pixels.sum(1, keepdim=True, dtype=torch.int32)
        return torch.div(total, pixels.shape[1], rounding_mode="floor")
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + _ONE // 2) >> 16


def brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blend images with black."""
    return _blended(pixels, torch.zeros_like(pixels), factors)


def colour(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blend images with their grey versions."""
    return _blended(pixels, _grey(pixels), factors)


def contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with the mean of its grey values."""
    total = _grey(pixels).sum((1, 2, 3), keepdim=True)
    size = pixels.shape[2] * pixels.shape[3]
    mean = torch.div(2 * total + size, 2 * size, rounding_mode="floor").int()
    return _blended(pixels, mean, factors)


def sharpness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blend images with smoothed versions; pixels at the border stay unchanged."""
    if min(pixels.shape[2:]) < 3:
        return pixels
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = torch.div(total + 6, 13, rounding_mode="floor")
    return _blended(pixels, smooth, factors)


def posterise(pixels: Tensor, _: Tensor) -> Tensor:
    """Keep only the upper `KEPT_BITS` bits of each pixel value."""
    return pixels & (256 - (1 << (8 - KEPT_BITS)))


def solarise(pixels: Tensor, _: Tensor) -> Tensor:
    """Invert pixel values of `SOLARISED_FROM` or more."""
    return torch.where(pixels >= SOLARISED_FROM, 255 - pixels, pixels)


def auto_contrast(pixels: Tensor, _: Tensor) -> Tensor:
    """Stretch the values of each channel to the range from 0 to 255.

    A channel with only one value stays unchanged.
    """
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    spread = torch.div(255 * (pixels - low), (high - low).clamp(min=1), rounding_mode="floor")
    return torch.where(high > low, spread, pixels)


def equalise(pixels: Tensor, _: Tensor) -> Tensor:
    """Equalise the histogram of each channel, as PIL's `ImageOps.equalize` does."""
    flat = pixels.flatten(2)
    values = torch.arange(256, dtype=flat.dtype, device=flat.device).expand(*flat.shape[:2], 256)
    in_order = flat.sort(dim=2).values.contiguous()
    below = torch.searchsorted(in_order, values.contiguous())  # numbers of pixels below each value
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
