"""EDSR: enhanced deep residual networks for super-resolution (arXiv 1707.02921).

Legend: B batch, C channels, s scale, H height, W width (pixels of the small picture).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.config.targets import check_options
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Depth, Positive, Size
from ppll_cli.models.unit import IMAGE, ImageSpec, Unit
from ppll_cli.tasks.picture_heads import PictureHead, ToLevels, Upsampler
from ppll_cli.tasks.picture_quality import RADIUS
from ppll_cli.tasks.super_resolution import super_resolution_of
from ppll_cli.tasks.task import Shape, Task

FIRST = "first"
"""Name of the output of unit `first`. The last unit also reads this output: the long skip."""


class First(nn.Module):
    """Converts a picture to levels (0 to 255, minus their mean), and applies a 3x3 convolution."""

    def __init__(self, width: int, mean: Sequence[float]) -> None:
        super().__init__()
        self.levels = ToLevels(mean)
        self.conv = nn.Conv2d(3, width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Convert pictures [B, 3, H, W] in [0, 1] to a map [B, width, H, W]."""
        x: Tensor = self.conv(self.levels(image))
        return x


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions without norms; their output, times `scale`, is added to the input."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map with the same shape as `x`, [B, C, H, W]."""
        y: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True))
        return x + (y if self.scale == 1 else y * self.scale)


class Tail(PictureHead):
    """EDSR's head: a 3x3 convolution, the sum with the output of `first`, and the upsampler."""

    def __init__(self, width: int, scale: int, mean: Sequence[float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = Upsampler(width, scale, mean)

    def mapped(self, x: Tensor) -> Tensor:
        """Apply the 3x3 convolution to a map [B, C, H, W], before the sum; keep the shape."""
        y: Tensor = self.conv(x)
        return y


@dataclass(frozen=True, kw_only=True)
class EDSR:
    """EDSR with units `first`, `body.0` ... `body.{depth-1}` and `tail`.

    The data set defines the scale. `tail` reads the output of the last residual unit and, as a long
    skip, the output of `first`.

    The paper's baseline has 16 residual units of 64 channels, with 1.37 million parameters for x2.
    Its large network has `depth=32 width=256 res_scale=0.1`. As in the paper's code, initial
    weights are torch's defaults, and values of pictures are from 0 to 255 within the network.

    Attributes:
        depth: Number of residual units.
        width: Number of channels of all maps, C.
        res_scale: Factor for the output of a residual unit's convolutions.
    """

    changed: ClassVar[str] = "it now computes in [0, 255], like its authors' code, not in [0, 1]"

    depth: Depth = 16
    width: Size = 64
    res_scale: Positive = 1.0

    def __post_init__(self) -> None:
        check_options("model", self)

    def reach(self, scale: int) -> int:
        """Return the radius of an output pixel's receptive field, in pixels of the small picture.

        The radius is rounded up. `scale` is the factor by which the picture is enlarged.
        """
        behind = 1 if scale < 4 else 1.5  # radius of the upsampler without its last convolution
        return ceil(1 + 2 * self.depth + 1 + behind + 1 / scale)

    def units(self, image: ImageSpec, task: Task) -> Sequence[Unit]:
        """Return EDSR's units. They do not depend on `image`.

        Raises:
            ConfigError: The task is not super-resolution, or `data.overlap` is too small for the
                depth.
        """
        wanted = super_resolution_of(task, "edsr")
        scale = wanted.scale
        least = self.reach(scale) + ceil(RADIUS / scale)  # SSIM reads the surroundings of a pixel
        if wanted.overlap < least:
            problem = (
                f"edsr and SSIM use pixels at distances up to {least}, so pictures evaluated in "
                "tiles would differ from whole pictures"
            )
            raise ConfigError(
                "data.overlap", wanted.overlap, problem, f"use data.overlap={least}, or more"
            )
        width, mean = self.width, wanted.mean
        body = partial(ResidualUnit, width, self.res_scale)
        tail = partial(Tail, width, scale, mean)
        first = Unit("first", partial(First, width, mean), reads=(IMAGE,), writes=(FIRST,))
        units = [first]
        for index in range(self.depth):
            reads = ("x",) if index else (FIRST,)
            units.append(Unit(f"body.{index}", body, reads=reads, adapt=partial(_same, body)))
        last = Unit("tail", tail, ("x", FIRST), ("prediction",), adapt=partial(_same, tail))
        return [*units, last]


def _same(build: Callable[[], nn.Module], input_shape: Shape, output_shape: Shape) -> nn.Module:
    return build()  # convolutions fit maps of any height and width
