"""Computes PSNR and SSIM of the luma, as papers on super-resolution report them.

Legend: B pictures, H height, W width (pixels).
"""

import torch
from torch import Tensor

PEAK = 255.0
"""Range of values that PSNR and SSIM assume, although luma values are only from 16 to 235."""

RADIUS = 5
"""Distance in pixels from the centre of an SSIM window, of 11x11 pixels, to its border."""

_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_LUMA = (65.481, 128.553, 24.966)


def luma(pictures: Tensor) -> Tensor:
    """Compute the luma (BT.601's Y, from 16 for black to 235 for white), float32 [B, H, W].

    Pictures are RGB, float [B, 3, H, W]. They are clamped to [0, 1] and rounded to 8 bits first.
    """
    channels = eight_bits(pictures).unbind(dim=1)
    red, green, blue = (c * (w / 255) for c, w in zip(channels, _LUMA, strict=True))
    return red + green + blue + 16


def inner_luma(pixels: Tensor, border: int) -> Tensor:
    """Compute the luma of a picture, uint8 [H, W, 3], without a border of `border` pixels.

    Returns:
        float32 [1, H - 2 * border, W - 2 * border].
    """
    within = pixels[border : len(pixels) - border, border : pixels.shape[1] - border]
    return luma(within.permute(2, 0, 1)[None].float() / 255)


def eight_bits(pictures: Tensor) -> Tensor:
    """Convert values in [0, 1] to whole numbers from 0 to 255, in float32; clamp other values."""
    return (pictures.float() * 255).clamp(0, 255).round()


def psnr(squared_error: float, pixels: float) -> float:
    """Compute the peak signal-to-noise ratio in dB, at most 88.1 dB.

    Args:
        squared_error: Sum of the squared errors of all values, which are from 0 to 255.
        pixels: Number of values: of pixels for luma, or of pixels times 3 for RGB.
    """
    mean = max(squared_error / pixels, 1e-4)
    return float(10 * torch.log10(torch.tensor(PEAK**2 / mean, dtype=torch.float64)))


def ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """Compute structural similarity of lumas [B, H, W] around each pixel, with Gaussian windows.

    This is scikit-image's SSIM (Wang et al., 2004) with gaussian_weights=True, sigma=1.5 and
    use_sample_covariance=False.

    Returns:
        float64 [B, H - 10, W - 10], for pixels whose window is inside the picture.
    """
    # Use float64, because variances are small differences of large numbers.
    x, y = one.double(), other.double()
    mean_x, mean_y, xx, yy, xy = map(_blur, (x, y, x * x, y * y, x * y))
    variance_x, variance_y = xx - mean_x * mean_x, yy - mean_y * mean_y
    covariance = xy - mean_x * mean_y
    c1, c2 = (_K1 * PEAK) ** 2, (_K2 * PEAK) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return above / below


def _blur(x: Tensor) -> Tensor:
    # One shifted copy for each weight, so that every device adds in the same order.
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    window = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights: list[float] = (window / window.sum()).tolist()
    for dimension in (1, 2):
        length = x.shape[dimension] - 2 * RADIUS
        parts = [w * x.narrow(dimension, start, length) for start, w in enumerate(weights)]
        x = torch.stack(parts).sum(dim=0)
    return x
