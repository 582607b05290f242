"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): images of a batch are mixed in pairs.

Image i of a batch is mixed with image i - 1, and the first one with the last. Samples come in
random order, so these are random pairs. All numbers are drawn on the CPU, once for a whole batch,
whatever replicas or micro-batches it is divided into later.
Legend: B batch, C channels, H height, W width (pixels).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import copysign, cos, exp, expm1, log1p, pi, sqrt

import torch
from torch import Tensor

from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.classification import LABEL, OTHER_LABEL, SHARE


@dataclass(frozen=True)
class Mixing:
    """How the images of a training batch are mixed.

    With both, each batch is mixed by one of them, which is drawn with probability 1/2.

    Attributes:
        mixup: Of Mixup, alpha: an image's share of the mixture is drawn from Beta(alpha, alpha).
            0 is off.
        cutmix: Of CutMix, the same.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def on(self) -> bool:
        """Whether training batches are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def mixed(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Mixes a training batch; its images are changed in place.

        Args:
            batch: Normalised images float32 [B, C, H, W] and labels int64 [B], by their names.
            generator: A generator of the CPU.

        Returns:
            The mixed images, and for each of them the label with the larger share, the other
            label, and the larger share.
        """
        images, labels = batch[IMAGE], batch[LABEL]
        which, u, v, down, right = torch.rand(5, dtype=torch.float64, generator=generator).tolist()
        if not self.cutmix or (self.mixup and which < 0.5):
            share = mix_up(images, symmetric_beta(self.mixup, u, v))
        else:
            share = cut_mix(images, symmetric_beta(self.cutmix, u, v), (down, right))
        others = labels.roll(1)
        if share < 0.5:
            labels, others, share = others, labels, 1 - share
        return {**batch, **targets(labels, others, share)}

    def unmixed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An evaluation batch, with the names of a mixed one: its own label has the whole share."""
        return {**batch, **targets(batch[LABEL], batch[LABEL], 1.0)}


def targets(labels: Tensor, others: Tensor, share: float) -> dict[str, Tensor]:
    """What a mixed batch carries beside its images, by name.

    Args:
        labels: int64 [B].
        others: int64 [B].
        share: How much of each target the first label has.
    """
    shares = torch.full(labels.shape, share, dtype=torch.float64, device=labels.device)
    return {LABEL: labels, OTHER_LABEL: others, SHARE: shares}


def mix_up(images: Tensor, share: float) -> float:
    """Adds to each image, weighted by its share, the one before it with the rest of the weight.

    Args:
        images: float32 [B, C, H, W], changed in place.
        share: In [0, 1].

    Returns:
        The share.
    """
    others = images.roll(1, 0).mul_(1 - share)
    images.mul_(share).add_(others)
    return share


def cut_mix(images: Tensor, share: float, place: tuple[float, float]) -> float:
    """Replaces a box of each image by the same box of the image before it.

    The box is as high and as wide as the image times sqrt(1 - share), rounded down to even numbers,
    and cut off where it leaves the image.

    Args:
        images: float32 [B, C, H, W], changed in place.
        share: What the box leaves of an image if none of it is cut off, in [0, 1].
        place: Where the box's centre is, as parts of height and width in [0, 1).

    Returns:
        What the box does leave of an image.
    """
    sides = images.shape[2:]
    rows, columns = (_within(s, share, at) for s, at in zip(sides, place, strict=True))
    box = images[:, :, rows, columns]
    box.copy_(box.roll(1, 0))
    height, width = sides
    return 1 - box.shape[2] * box.shape[3] / (height * width)


def _within(side: int, share: float, centre: float) -> slice:
    """The pixels along one side of an image that a box covers."""
    middle, half = int(centre * side), int(side * sqrt(1 - share)) // 2
    return slice(max(0, middle - half), min(side, middle + half))


def symmetric_beta(alpha: float, u: float, v: float) -> float:
    """A number of Beta(alpha, alpha), made of two uniform numbers in [0, 1).

    If T is Student's with 2 alpha degrees of freedom, (1 + T / sqrt(2 alpha + T^2)) / 2 is of
    Beta(alpha, alpha); and T is sqrt(2 alpha (u^(-1 / alpha) - 1)) cos(2 pi v) (Bailey 1994,
    Mathematics of Computation 62). So nothing is drawn in vain, and no alpha above 0 overflows.
    """
    logarithm = log1p(-u) / alpha  # of u^(1 / alpha), with 1 - u in the place of u, which may be 0
    cosine = cos(2 * pi * v)
    squared = -expm1(logarithm) * cosine**2
    return (1 + copysign(sqrt(squared / (exp(logarithm) + squared)), cosine)) / 2
