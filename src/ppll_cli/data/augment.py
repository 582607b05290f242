"""Augmentation and normalisation of whole batches.

Every random number is drawn on the CPU, from the generator given, and only applied on the images'
device: the same batch is augmented alike everywhere. Images stay uint8 until they are normalised,
which comes last. Legend: B batch, C channels, H height, W width (pixels).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppll_cli.data.randaugment import rand_augment
from ppll_cli.data.staging import to_device


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a training batch.

    Attributes:
        kind: "none"; "basic", by the other attributes; "randaugment", the same and RandAugment.
        pad: How far an image is shifted at most by the random crop, in pixels; 0 is off.
        pad_mode: What is behind an image's border, "zeros" or "reflect".
        flip: Whether half of the images are mirrored.
    """

    kind: str
    pad: int
    pad_mode: str
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augments a batch.

        Args:
            images: uint8 [B, C, H, W].
            generator: A generator of the CPU.

        Returns:
            uint8 [B, C, H, W].
        """
        if self.kind == "none":
            return images
        if self.pad:
            images = random_crop(images, self.pad, self.pad_mode, generator)
        if self.flip:
            images = random_flip(images, generator)
        return rand_augment(images, generator) if self.kind == "randaugment" else images


def per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """One value, or one a channel, float32 [C, 1, 1], as `normalise` takes them."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels to numbers of about mean 0 and standard deviation 1.

    Args:
        images: uint8 [B, C, H, W], 0 to 255.
        mean: float32 [C, 1, 1] or [1, 1, 1], for pixels in [0, 1].
        std: Of the same form.

    Returns:
        float32 [B, C, H, W].
    """
    return images.float().div_(255).sub_(mean).div_(std)


def random_crop(images: Tensor, pad: int, mode: str, generator: torch.Generator) -> Tensor:
    """Pads every image and cuts its old size out of it again, at a place drawn for each.

    Args:
        images: uint8 [B, C, H, W].
        pad: Pixels on each side, fewer than H and W.
        mode: `zeros` or `reflect` (the border itself is not repeated).
        generator: A generator of the CPU.

    Returns:
        uint8 [B, C, H, W].
    """
    batch, channels, height, width = images.shape
    device = images.device
    draws = torch.randint(-pad, pad + 1, (2, batch, 1), generator=generator)
    down, right = to_device(draws, device)
    rows = torch.arange(height, device=device) + down
    columns = torch.arange(width, device=device) + right
    row_sources, column_sources = _inside(rows, mode), _inside(columns, mode)
    sources = (row_sources[:, :, None] * width + column_sources[:, None, :]).flatten(1)
    index = sources[:, None].expand(-1, channels, -1)
    cropped = images.flatten(2).gather(2, index).view(images.shape)
    if mode == "zeros":
        outside = (rows != row_sources)[:, :, None] | (columns != column_sources)[:, None, :]
        cropped = cropped.masked_fill(outside[:, None], 0)
    return cropped


def _inside(places: Tensor, mode: str) -> Tensor:
    """Where the pixels at `places`, int64 [B, size], come from: within 0 .. size - 1."""
    last = places.shape[1] - 1
    if mode == "reflect":
        return last - (last - places.abs()).abs()
    return places.clamp(0, last)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image from left to right with probability one half.

    Args:
        images: uint8 [B, C, H, W].
        generator: A generator of the CPU.

    Returns:
        uint8 [B, C, H, W].
    """
    flipped = torch.randint(2, (len(images), 1, 1, 1), generator=generator) == 1
    return torch.where(to_device(flipped, images.device), images.flip(3), images)
