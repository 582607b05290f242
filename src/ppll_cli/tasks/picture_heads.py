"""Heads that compute enlarged pictures from maps.

Legend: B batch, C channels, H height, W width, s scale.
"""

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor, nn


class _Levels(nn.Module):
    levels: Tensor
    mean: Tensor

    def __init__(self, mean: Sequence[float]) -> None:
        super().__init__()
        # Networks learn faster with levels than in [0, 1]; EDSR's authors and BasicSR use them too.
        # The number 255 is saved with the weights, so that weights of networks that compute in
        # [0, 1] cannot be loaded. With a tensor without dimensions, results under autocast would be
        # bfloat16.
        self.register_buffer("levels", torch.full((1, 1, 1), 255.0))
        values = torch.tensor([*mean], dtype=torch.float32)[:, None, None]
        self.register_buffer("mean", values, persistent=False)  # the data set defines it


class ToLevels(_Levels):
    """Converts pictures to levels, 255 * (picture - mean).

    `mean` has the mean of each colour, in [0, 1].
    """

    def forward(self, pictures: Tensor) -> Tensor:
        """Convert pictures, [B, 3, H, W] in [0, 1], to levels [B, 3, H, W]."""
        return (pictures - self.mean) * self.levels


class ToPictures(_Levels):
    """Converts levels to pictures; the inverse of `ToLevels`."""

    def forward(self, levels: Tensor) -> Tensor:
        """Convert pixel levels [B, 3, H, W] to pictures [B, 3, H, W], not clamped to [0, 1]."""
        return levels / self.levels + self.mean


class Upsampler(nn.Module):
    """Makes enlarged pictures from a map, as EDSR does (arXiv 1707.02921).

    Convolutions with pixel shuffles enlarge the map: one for scale 2 or 3, two for scale 4. Another
    convolution computes levels, which `ToPictures` converts to pictures.

    Args:
        channels: Number of channels of the map, C.
        scale: Factor by which height and width grow: 2, 3 or 4.
        mean: Mean of each colour, in [0, 1].
    """

    def __init__(self, channels: int, scale: int, mean: Sequence[float]) -> None:
        super().__init__()
        self.channels, self.scale, self.mean = channels, scale, tuple(mean)
        steps = [scale] if scale == 3 else [2] * round(log2(scale))
        layers: list[nn.Module] = []
        for step in steps:
            layers += [nn.Conv2d(channels, step**2 * channels, 3, padding=1), nn.PixelShuffle(step)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))
        self.pictures = ToPictures(mean)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pictures [B, 3, sH, sW] for a map [B, C, H, W]."""
        pictures: Tensor = self.pictures(self.layers(x))
        return pictures


class PictureHead(nn.Module):
    """A head for super-resolution: converts features to a map, and then the map to pictures.

    Between these two steps, long skips are added to the map: outputs of early units that the head
    also reads. A subclass defines `mapped` for the first step, and `upsampler` for the second.
    """

    upsampler: Upsampler

    def mapped(self, x: Tensor) -> Tensor:
        """Convert features to a map [B, C, H, W]."""
        raise NotImplementedError

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        """Return pictures [B, 3, sH, sW] for features `x` and long skips [B, C, H, W]."""
        y = self.mapped(x)
        for skip in skips:
            y = y + skip
        pictures: Tensor = self.upsampler(y)
        return pictures
