"""Augmentation and normalisation of whole batches.

Random numbers are generated on the CPU, so a batch is augmented identically on every device. Images
stay uint8 until `normalise`, the last step. Legend: B batch, C channels, H height, W width
(pixels).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ppll_cli.data.randaugment import picked
from ppll_cli.data.staging import to_device


def per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """Convert a mean or standard deviation for `normalise`: float32 [1, 1, 1] or [C, 1, 1]."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale uint8 [B, C, H, W] to float32 in [0, 1], subtract the mean and divide by `std`.

    `mean` and `std` are float32 [C, 1, 1] or [1, 1, 1], for pixels in [0, 1].
    """
    return images.float().div_(255).sub_(mean).div_(std)


def random_crop(images: Tensor, pad: int, mode: str, generator: torch.Generator) -> Tensor:
    """Pad every image, uint8 [B, C, H, W], and crop it to its old size at a random position.

    `pad`, the pixels added on each side, must be less than H and W. `mode` is `zeros`, or `reflect`
    (mirrored without repeating the border pixels).
    """
    batch, _, height, width = images.shape
    device = images.device
    draws = torch.randint(-pad, pad + 1, (2, batch, 1), generator=generator)
    down, right = to_device(draws, device)
    rows = torch.arange(height, device=device) + down
    columns = torch.arange(width, device=device) + right
    row_sources, column_sources = _inside(rows, mode), _inside(columns, mode)
    cropped = picked(images, row_sources[:, :, None], column_sources[:, None, :])
    if mode == "zeros":
        outside = (rows != row_sources)[:, :, None] | (columns != column_sources)[:, None, :]
        cropped = cropped.masked_fill(outside[:, None], 0)
    return cropped


def _inside(places: Tensor, mode: str) -> Tensor:
    last = places.shape[1] - 1
    if mode == "reflect":
        return last - (last - places.abs()).abs()
    return places.clamp(0, last)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image, uint8 [B, C, H, W], from left to right with probability 1/2."""
    flipped = torch.randint(2, (len(images), 1, 1, 1), generator=generator) == 1
    return torch.where(to_device(flipped, images.device), images.flip(3), images)
