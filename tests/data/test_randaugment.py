"""RandAugment: operations compared with PIL's, and how they are drawn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ppll_cli.data import randaugment as ra
from ppll_cli.data.batches import augmented
from ppll_cli.data.digits import Digits
from tests.data.picture_files import picture
from tests.no_waiting import DEVICE, NoWaiting

ONE = 1 << 16
PICTURES = [picture(number, 24, 20) for number in range(4)]
FLAT = Image.new("RGB", (24, 20), (7, 7, 200))


def tensor(*pictures: Image.Image) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(each).transpose(2, 0, 1) for each in pictures]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ENHANCERS = [
    (ra.brightness, ImageEnhance.Brightness, 1),
    (ra.colour, ImageEnhance.Color, 1),
    (ra.contrast, ImageEnhance.Contrast, 1),
    (ra.sharpness, ImageEnhance.Sharpness, 2),
]
"""The last number is the largest allowed difference of a pixel. PIL rounds down, and also rounds
its blurred image."""


@pytest.mark.parametrize("factor", [0.73, 1.27])
@pytest.mark.parametrize(("operation", "enhancer", "tolerance"), ENHANCERS)
def test_enhancements_equal_pils(
    operation: Callable[[Tensor, Tensor], Tensor],
    enhancer: Callable[[Image.Image], ImageEnhance.Color],
    tolerance: int,
    factor: float,
) -> None:
    pixels = tensor(*PICTURES, FLAT).int()
    factors = torch.full((5, 1, 1, 1), round(factor * ONE), dtype=torch.int32)
    made = operation(pixels, factors).clamp(0, 255)
    expected = tensor(*(enhancer(each).enhance(factor) for each in [*PICTURES, FLAT])).int()
    assert int((made - expected).abs().max()) <= tolerance
    assert not torch.equal(made[:4], pixels[:4])


@pytest.mark.parametrize(
    ("operation", "theirs"),
    [
        (ra.posterise, lambda image: ImageOps.posterize(image, ra.KEPT_BITS)),
        (ra.solarise, lambda image: ImageOps.solarize(image, ra.SOLARISED_FROM)),
        (ra.equalise, ImageOps.equalize),
        (ra.auto_contrast, ImageOps.autocontrast),
    ],
)
def test_other_operations_on_colours_equal_pils(
    operation: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Image.Image], Image.Image]
) -> None:
    pixels = tensor(*PICTURES, FLAT).int()
    made = operation(pixels, torch.tensor(ONE))
    difference = (made - tensor(*map(theirs, [*PICTURES, FLAT])).int()).abs()
    assert int(difference.max()) <= (operation is ra.auto_contrast)  # PIL uses floating point here
    assert not torch.equal(made[:4], pixels[:4])


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("kind", range(len(ra.GEOMETRY)))
def test_geometric_operations_move_pixels_like_pil(kind: int, sign: int) -> None:
    where = ra.GEOMETRY[kind](sign, 20, 24)
    made = ra.transformed(tensor(PICTURES[0]), torch.tensor([where]))
    moved = PICTURES[0].transform(
        (24, 20), Image.Transform.AFFINE, [each / ONE for each in where], Image.Resampling.NEAREST
    )
    assert torch.equal(made, tensor(moved))
    assert not torch.equal(made, tensor(PICTURES[0]))


def test_rotations_are_about_the_middle_and_shears_have_their_slope() -> None:
    image = tensor(PICTURES[0])
    turned = ra.transformed(image, torch.tensor([ra.GEOMETRY[4](1, 20, 24)]))
    degrees = ra.ANGLE * 180 / np.pi
    expected = tensor(PICTURES[0].rotate(degrees, Image.Resampling.NEAREST))
    assert degrees == pytest.approx(9)
    assert float((turned == expected).float().mean()) > 0.97
    sheared = ra.transformed(image, torch.tensor([ra.GEOMETRY[0](1, 20, 24)]))
    assert torch.equal(sheared[..., 19, 0], image[..., 19, int(0.5 + 0.09 * 19.5)])


def test_two_operations_are_drawn_for_each_image_and_all_occur() -> None:
    drawn: list[list[int]] = [[] for _ in range(600)]

    def noted(images: Tensor, operations: Tensor, signs: Tensor) -> Tensor:
        for mine, kind, sign in zip(drawn, operations.tolist(), signs.tolist(), strict=True):
            mine.append(kind)
            assert sign in (-1, 1)
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ra, "_one_operation", noted)
        ra.rand_augment(torch.zeros(600, 3, 4, 4, dtype=torch.uint8), generator())
    assert {len(mine) for mine in drawn} == {2}
    counts = np.bincount([kind for mine in drawn for kind in mine], minlength=14)
    assert len(counts) == 14
    assert counts.min() > 50


def test_each_image_is_changed_only_by_its_own_draws() -> None:
    images = tensor(*PICTURES * 20)
    before = images.clone()
    kinds, signs = torch.arange(80) % 14, torch.arange(80) % 2 * 2 - 1
    made = ra._one_operation(images, kinds, signs)
    assert torch.equal(images, before)
    assert torch.equal(made[kinds == 13], images[kinds == 13])
    for number in range(80):
        alone = ra._one_operation(
            images[number : number + 1], kinds[number : number + 1], signs[number : number + 1]
        )
        assert torch.equal(made[number : number + 1], alone)


@pytest.mark.parametrize("shape", [(5, 1, 1, 1), (9, 1, 8, 8), (9, 3, 2, 7), (9, 5, 6, 6)])
def test_images_of_any_shape_are_augmented(shape: tuple[int, ...]) -> None:
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator(3))
    for seed in range(6):
        made = ra.rand_augment(images, generator(seed))
        assert (made.shape, made.dtype) == (images.shape, torch.uint8)


def test_the_augment_option_selects_the_operations(options: Callable[..., dict[str, Any]]) -> None:
    images = tensor(*PICTURES)

    def made(kind: str, pad: int, flip: bool) -> Tensor:
        dataset = Digits(**options(augment=kind, pad=pad, flip=flip))
        return augmented(images, dataset, generator(5))

    assert made("none", 2, True) is images
    assert made("basic", 0, False) is images
    assert torch.equal(made("randaugment", 0, False), ra.rand_augment(images, generator(5)))
    assert not torch.equal(made("randaugment", 2, True), made("basic", 2, True))


def test_randaugment_never_waits_for_the_device(no_waiting: NoWaiting) -> None:
    images = torch.empty(64, 3, 8, 8, dtype=torch.uint8, device=DEVICE)
    with no_waiting:
        made = ra.rand_augment(images, generator())
    assert made.device == DEVICE
    assert no_waiting.staged_copies > 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_the_same_images() -> None:
    images = tensor(*PICTURES * 20)
    here = ra.rand_augment(images, generator())
    assert torch.equal(ra.rand_augment(images.cuda(), generator()).cpu(), here)
