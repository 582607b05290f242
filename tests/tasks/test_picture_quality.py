"""PSNR and SSIM, compared with scikit-image's."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from ppll_cli.tasks.picture_quality import luma, psnr, ssim_map


def pictures(noise: int) -> tuple[Tensor, Tensor]:
    """Return a smooth picture, and the same picture with noise, uint8 [H, W, 3]."""
    random = np.random.RandomState(0)
    rows, columns = np.mgrid[:37, :41]
    smooth = 128 + 90 * np.sin(rows / 5)[..., None] * np.cos(columns[..., None] / (4, 6, 9))
    noisy = smooth + random.randint(-noise, noise + 1, smooth.shape)
    one, other = (torch.from_numpy(p.clip(0, 255).astype(np.uint8)) for p in (smooth, noisy))
    return one, other


def as_batch(picture: Tensor) -> Tensor:
    return picture.permute(2, 0, 1)[None].float() / 255


def test_luma_is_computed_by_bt_601() -> None:
    picture, _ = pictures(0)
    expected = rgb2ycbcr(picture.numpy())[..., 0]
    # Ours is computed in float32, theirs in float64.
    np.testing.assert_allclose(luma(as_batch(picture))[0].numpy(), expected, atol=1e-4)


def test_luma_is_computed_from_8_bit_values() -> None:
    colour = torch.tensor([-0.1, 0.5004 / 255, 1.2])[None, :, None, None]
    assert luma(colour) == luma(torch.tensor([0, 1 / 255, 1])[None, :, None, None])


@pytest.mark.parametrize("noise", [1, 10, 100])
def test_psnr_and_ssim_equal_those_of_scikit_image(noise: int) -> None:
    one, other = (luma(as_batch(picture)) for picture in pictures(noise))
    error = float((one - other).double().square().sum())
    x, y = one[0].double().numpy(), other[0].double().numpy()
    expected = peak_signal_noise_ratio(x, y, data_range=255)
    assert psnr(error, one.numel()) == pytest.approx(expected, abs=1e-6)
    expected = structural_similarity(
        x, y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert float(ssim_map(one, other).mean()) == pytest.approx(expected, abs=1e-9)


def test_equal_pictures_have_a_finite_psnr() -> None:
    """JSON has no infinity, and a mean over pictures would become infinite."""
    assert psnr(0.0, 100.0) == pytest.approx(88.13, abs=0.01)
