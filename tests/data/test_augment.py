import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ppll_cli.data.augment import normalise, random_crop, random_flip

IMAGES = torch.randint(1, 256, (400, 2, 6, 7), dtype=torch.uint8)
IMAGES = IMAGES.copy_(torch.arange(1, 85).view(2, 6, 7))  # all pixels of an image are different


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_crops(image: NDArray[np.uint8], pad: int, mode: str) -> list[bytes]:
    """Return every possible crop of an image, padded by NumPy."""
    name = "constant" if mode == "zeros" else mode
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode=name)  # type: ignore[call-overload]
    _, height, width = image.shape
    return [
        padded[:, y : y + height, x : x + width].tobytes()
        for y in range(2 * pad + 1)
        for x in range(2 * pad + 1)
    ]


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("pad", [1, 2, 5])
def test_crops_are_possible_crops_and_all_of_them_occur(pad: int, mode: str) -> None:
    allowed = naive_crops(IMAGES[0].numpy(), pad, mode)
    cropped = random_crop(IMAGES, pad, mode, generator())
    assert cropped.dtype == torch.uint8
    found = {image.numpy().tobytes() for image in cropped}
    assert found <= set(allowed)
    if len(allowed) < 30:  # 400 draws miss one of 25 crops with a probability below 1e-5
        assert found == set(allowed)


def test_a_crop_has_pixels_of_its_own_image_only() -> None:
    images = torch.arange(64, dtype=torch.uint8).view(64, 1, 1, 1).expand(-1, 3, 4, 4)
    assert torch.equal(random_crop(images, 2, "reflect", generator()), images)


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    flipped = random_flip(IMAGES, generator())
    mirrored = (flipped == IMAGES.flip(3)).flatten(1).all(1)
    same = (flipped == IMAGES).flatten(1).all(1)
    assert torch.equal(mirrored, ~same)
    assert 150 < mirrored.sum() < 250


def test_draws_depend_only_on_the_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random_flip(random_crop(IMAGES, 2, "zeros", generator(7)), generator(8))
    again = random_flip(random_crop(IMAGES, 2, "zeros", generator(7)), generator(8))
    other = random_flip(random_crop(IMAGES, 2, "zeros", generator(9)), generator(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_does_not_change_its_input() -> None:
    images = IMAGES.clone()
    random_flip(random_crop(images, 2, "zeros", generator()), generator())
    normalise(images, torch.tensor(0.5), torch.tensor(0.5))
    assert torch.equal(images, IMAGES)


def test_normalised_pixels_follow_the_formula() -> None:
    mean, std = torch.tensor([0.2, 0.4])[:, None, None], torch.tensor([0.5, 2.0])[:, None, None]
    images = normalise(IMAGES, mean, std)
    assert images.dtype == torch.float32
    expected = (IMAGES.double() / 255 - mean.double()) / std.double()
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)  # rounding errors


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_the_same_images() -> None:
    there = IMAGES.cuda()
    for mode in ("zeros", "reflect"):
        here = random_crop(IMAGES, 2, mode, generator())
        assert torch.equal(random_crop(there, 2, mode, generator()).cpu(), here)
    assert torch.equal(random_flip(there, generator()).cpu(), random_flip(IMAGES, generator()))
