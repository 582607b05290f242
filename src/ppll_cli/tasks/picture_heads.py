"""Heads that compute enlarged pictures from maps.

Legend: B batch, C channels, H height, W width, s scale.
"""

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor, nn


class _Levels(nn.Module):
    """Holds the numbers that convert pictures to levels, 255 * (picture - mean), and back.

    Pictures are in [0, 1]. Networks learn faster with levels, which EDSR's authors and BasicSR use
    too. The number 255 is saved with the weights, so that weights of networks that compute in [0,
    1] cannot be loaded. The mean, one number in [0, 1] per channel, is not saved, because the data
    set defines it.
    """

    levels: Tensor
    mean: Tensor

    def __init__(self, mean: Sequence[float]) -> None:
        super().__init__()
        # With a tensor without dimensions, results under autocast would be bfloat16.
        self.register_buffer("levels", torch.full((1, 1, 1), 255.0))
        values = torch.tensor([*mean], dtype=torch.float32)[:, None, None]
        self.register_buffer("mean", values, persistent=False)


class ToLevels(_Levels):
    """Converts pictures to levels, 255 * (picture - mean)."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Convert pictures, [B, 3, H, W] in [0, 1], to levels [B, 3, H, W]."""
        return (pictures - self.mean) * self.levels


class ToPictures(_Levels):
    """Converts levels, 255 * (picture - mean), to pictures."""

    def forward(self, levels: Tensor) -> Tensor:
        """Convert levels [B, 3, H, W] to pictures [B, 3, H, W], not clamped to [0, 1]."""
        return levels / self.levels + self.mean


class Upsampler(nn.Module):
    """EDSR's upsampler (arXiv 1707.02921): convolutions with pixel shuffles, then a convolution.

    Scales 2 and 3 need one pixel shuffle; scale 4 needs two. The last convolution computes levels,
    255 * (picture - mean), which are converted to pictures.
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
    """A head with two steps: it converts features to a map, and then the map to pictures.

    Between the steps, long skips are added to the map. A subclass creates `upsampler`, which makes
    pictures from the map.
    """

    upsampler: Upsampler

    def mapped(self, x: Tensor) -> Tensor:
        """Convert features to a map [B, C, H, W]."""
        raise NotImplementedError

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        """Return pictures [B, 3, sH, sW] for features and long skips [B, C, H, W]."""
        y = self.mapped(x)
        for skip in skips:
            y = y + skip
        pictures: Tensor = self.upsampler(y)
        return pictures
