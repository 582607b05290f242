"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): mix the images of a batch in pairs.

Each image is mixed with the previous one, and the first image with the last. A batch is mixed
before it is divided among replicas and into micro-batches. Legend: B batch, C channels, H height,
W width (pixels).
"""

from collections.abc import Mapping
from math import copysign, cos, exp, expm1, log1p, pi, sqrt

import torch
from torch import Tensor

from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.classification import LABEL, OTHER_LABEL, SHARE


def mixed(
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> dict[str, Tensor]:
    """Mix a training batch by Mixup or CutMix. Its images are changed in place.

    If both methods are on, one of them is chosen for each batch, with equal probability. The share
    of an image in its mixture is drawn from Beta(alpha, alpha); CutMix then corrects it to the
    share of the pixels.

    Args:
        batch: Normalised images float32 [B, C, H, W] and labels int64 [B], by name.
        generator: Draws all random numbers.
        mixup: Alpha of Mixup; 0 turns it off.
        cutmix: Alpha of CutMix; 0 turns it off. The two alphas must not both be 0.

    Returns:
        The mixed images and the result of `targets`, by name. `LABEL` is the label of the image
            with the larger share, `OTHER_LABEL` that of the other image.
    """
    images, labels = batch[IMAGE], batch[LABEL]
    which, u, v, down, right = torch.rand(5, dtype=torch.float64, generator=generator).tolist()
    if not cutmix or (mixup and which < 0.5):
        share = mix_up(images, symmetric_beta(mixup, u, v))
    else:
        share = cut_mix(images, symmetric_beta(cutmix, u, v), (down, right))
    others = labels.roll(1)
    if share < 0.5:
        labels, others, share = others, labels, 1 - share
    return {**batch, **targets(labels, others, share)}


def unmixed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an evaluation batch with `targets` as in a mixed batch. Each image's share is 1."""
    return {**batch, **targets(batch[LABEL], batch[LABEL], 1.0)}


def targets(labels: Tensor, others: Tensor, share: float) -> dict[str, Tensor]:
    """Return the targets of a mixed batch, by name.

    The targets are `LABEL` and `OTHER_LABEL`, int64 [B], and `SHARE`, float64 [B]. `labels`
    and `others`, int64 [B], are the labels of the two images in each mixture. `share`, in [0, 1],
    is the share of the image whose label is in `labels`.
    """
    shares = torch.full(labels.shape, share, dtype=torch.float64, device=labels.device)
    return {LABEL: labels, OTHER_LABEL: others, SHARE: shares}


def mix_up(images: Tensor, share: float) -> float:
    """Replace each image x_i by share * x_i + (1 - share) * x_(i - 1), in place; return the share.

    Images are float32 [B, C, H, W]; the share is in [0, 1].
    """
    others = images.roll(1, 0).mul_(1 - share)
    images.mul_(share).add_(others)
    return share


def cut_mix(images: Tensor, share: float, place: tuple[float, float]) -> float:
    """Replace a box of each image by the same box of the previous image, in place.

    Args:
        images: float32 [B, C, H, W].
        share: Fraction of an image's area that the box is to leave. The box is sqrt(1 - `share`)
            times as high and as wide as the image, rounded down to even numbers of pixels, and
            clipped at the border.
        place: Centre of the box, as fractions of the image's height and width in [0, 1).

    Returns:
        The fraction of an image's area outside of the clipped box.
    """
    sides = images.shape[2:]
    rows, columns = (_within(s, share, at) for s, at in zip(sides, place, strict=True))
    box = images[:, :, rows, columns]
    box.copy_(box.roll(1, 0))
    height, width = sides
    return 1 - box.shape[2] * box.shape[3] / (height * width)


def _within(side: int, share: float, centre: float) -> slice:
    middle, half = int(centre * side), int(side * sqrt(1 - share)) // 2
    return slice(max(0, middle - half), min(side, middle + half))


def symmetric_beta(alpha: float, u: float, v: float) -> float:
    """Transform uniform numbers u and v in [0, 1) into one with distribution Beta(alpha, alpha).

    If T has Student's t-distribution with 2 alpha degrees of freedom, then
    (1 + T / sqrt(2 alpha + T^2)) / 2 has the distribution Beta(alpha, alpha), and
    T = sqrt(2 alpha (u^(-1 / alpha) - 1)) cos(2 pi v) (Bailey 1994, Mathematics of Computation 62).
    """
    # This needs only two random numbers, and does not overflow for any alpha above 0.
    logarithm = log1p(-u) / alpha  # 1 - u is used as the formula's u, because u may be 0
    cosine = cos(2 * pi * v)
    squared = -expm1(logarithm) * cosine**2
    return (1 + copysign(sqrt(squared / (exp(logarithm) + squared)), cosine)) / 2
