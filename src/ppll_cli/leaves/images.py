"""Describes the images that a model is built for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppll_cli.leaves.values import ValueSpec

IMAGE = "image"
"""Name of a batch's images, float [B, C, H, W], normalised."""


@dataclass(frozen=True)
class ImageSpec:
    """The images that a model is built for; height and width are in pixels.

    Normalisation subtracts `mean` from pixels in [0, 1], and then divides by `std`. Each has one
    value, or one value per channel.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def specs(self) -> "Mapping[str, ValueSpec]":
        """Shape and dtype of the only tensor that the model reads, by its name, `image`."""
        import torch  # only here, because wrong options are refused before torch is imported

        from ppll_cli.leaves.values import ValueSpec

        return {IMAGE: ValueSpec((self.channels, self.height, self.width), torch.float32)}
