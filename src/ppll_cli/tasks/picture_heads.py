"""What makes enlarged pictures of maps.

Legend: B batch, C channels, H height, W width, s scale.
"""

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor, nn


class _Levels(nn.Module):
    """Pictures in [0, 1], and what nets compute with: levels from 0 to 255, less their mean.

    EDSR's authors and BasicSR train in [0, 255], and nets learn faster there than in [0, 1].
    The number of levels is saved with the weights, so that weights of nets that computed in [0, 1]
    are refused and not misunderstood. The mean is known from the data and is not saved.

    Args:
        mean: Of the pictures in [0, 1], [3].
    """

    levels: Tensor
    mean: Tensor

    def __init__(self, mean: Sequence[float]) -> None:
        super().__init__()
        # Not a number alone: under autocast its float32 has to win over bfloat16.
        self.register_buffer("levels", torch.full((1, 1, 1), 255.0))
        values = torch.tensor([*mean], dtype=torch.float32)[:, None, None]
        self.register_buffer("mean", values, persistent=False)


class ToLevels(_Levels):
    """Pictures to levels."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] to levels less their mean, of the same shape."""
        return (pictures - self.mean) * self.levels


class ToPictures(_Levels):
    """Levels to pictures."""

    def forward(self, levels: Tensor) -> Tensor:
        """Levels [B, 3, H, W] less their mean to pictures in [0, 1], of the same shape."""
        return levels / self.levels + self.mean


class Upsampler(nn.Module):
    """EDSR's (arXiv 1707.02921): convolutions and pixel shuffles up to the scale, a convolution.

    Args:
        channels: C of the map.
        scale: 2 or 3, in one step, or 4, in two.
        mean: Of the pictures, which is added at the end.
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
        """A map [B, C, H, W] to pictures [B, 3, sH, sW]."""
        pictures: Tensor = self.pictures(self.layers(x))
        return pictures


class PictureHead(nn.Module):
    """The head of a net that makes pictures, in two steps: features to a map, and that to pictures.

    Long skips are added between the two.

    Attributes:
        upsampler: The second step; a subclass makes it.
    """

    upsampler: Upsampler

    def mapped(self, x: Tensor) -> Tensor:
        """Features to a map [B, C, H, W]."""
        raise NotImplementedError

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        """Features, and maps [B, C, H, W] that skipped what made them, to pictures."""
        y = self.mapped(x)
        for skip in skips:
            y = y + skip
        pictures: Tensor = self.upsampler(y)
        return pictures


class FusedPictureHead(nn.Module):
    """A head whose map is fused with a feature bank (arXiv 2406.00446; the details are ours).

    Our reading: the bank is the backbone's long skip, Upsampler(SLM_j(x_j) + stop-gradient(x_0)),
    where x_0 are the network's first features. The public code of Local-SR hands x_0, detached, to
    its local networks as well; but there the sum with it is computed and not used. With other
    `fba.features` the bank has the maps that earlier modules made in place of x_0 (ours).
    Maps with another number of channels than the head's are projected by a 1x1 convolution. `add`
    sums them and the head's own map; `concatenate` joins all, and a 1x1 convolution takes them
    back to the head's channels, which begins as that sum's first term: training lets the bank in.

    Args:
        head: A copy of the model's head.
        channels: Of the banked maps. They take no gradient.
        fusion: `concatenate` or `add`.
        shared_head: Whether the upsampler has the shape of the model's; else it reads the joined
            maps themselves.
    """

    def __init__(
        self, head: PictureHead, channels: Sequence[int], fusion: str, shared_head: bool
    ) -> None:
        super().__init__()
        self.head, self.fusion = head, fusion
        old = head.upsampler
        width, joined = old.channels, old.channels * (1 + len(channels))
        self.projections = nn.ModuleList(
            nn.Identity() if banked == width else nn.Conv2d(banked, width, 1) for banked in channels
        )
        self.mix: nn.Conv2d | None = None
        if fusion == "concatenate" and shared_head:
            self.mix = nn.Conv2d(joined, width, 1)
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]
            with torch.no_grad():
                self.mix.weight.copy_(torch.eye(width, joined)[:, :, None, None])
        elif fusion == "concatenate":
            head.upsampler = Upsampler(joined, old.scale, old.mean)

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Features, and banked maps [B, C', H, W], to pictures [B, 3, sH, sW]."""
        maps = [self.head.mapped(x)]
        # First features may be of the module itself.
        maps += [p(b.detach()) for p, b in zip(self.projections, bank, strict=True)]
        fused = torch.stack(maps).sum(dim=0) if self.fusion == "add" else torch.cat(maps, dim=1)
        if self.mix is not None:
            fused = self.mix(fused)
        pictures: Tensor = self.head.upsampler(fused)
        return pictures
