"""Mixup and CutMix, compared with loops over pixels.

Their draws are compared with the distribution.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.data.batches import Batches
from ppll_cli.data.mixing import cut_mix, mix_up, mixed, symmetric_beta
from ppll_cli.data.synthetic import Synthetic
from tests.no_waiting import DEVICE, NoWaiting

Options = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")
LABELS = torch.tensor([3, 1, 4, 1, 5])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(height: int = 6, width: int = 9) -> Tensor:
    """Return five images. All their pixels are different."""
    return torch.arange(5 * 2 * height * width).float().reshape(5, 2, height, width) / 100 - 2


def batch() -> dict[str, Tensor]:
    return {"image": images(), "label": LABELS.clone()}


def same_box(share: float, place: tuple[float, float], height: int, width: int) -> NDArray[Any]:
    """Return a mask of the pixels in a box, by the lines of the paper's code."""
    ratio = math.sqrt(1.0 - share)
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    cy, cx = math.floor(place[0] * height), math.floor(place[1] * width)
    top, bottom = np.clip([cy - cut_h // 2, cy + cut_h // 2], 0, height)
    left, right = np.clip([cx - cut_w // 2, cx + cut_w // 2], 0, width)
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_mixup_adds_the_previous_image(share: float) -> None:
    before = images().double().numpy()
    found = images()
    assert mix_up(found, share) == share
    for number in range(5):
        expected = share * before[number] + (1 - share) * before[(number - 1) % 5]
        np.testing.assert_allclose(found[number].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 9), (1, 4), (8, 8), (5, 1)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.5), (0.999, 0.3), (0.2, 1 - 2**-53)])
def test_cutmix_pastes_a_box_of_the_previous_image(
    size: tuple[int, int], share: float, place: tuple[float, float]
) -> None:
    before, found = images(*size), images(*size)
    left = cut_mix(found, share, place)
    mask = same_box(share, place, *size)
    assert left == pytest.approx(1 - mask.mean())
    for number in range(5):
        expected = np.where(mask, before[(number - 1) % 5], before[number])
        assert np.array_equal(found[number].numpy(), expected)


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_the_share_of_a_target_is_that_of_its_pixels(alphas: dict[str, float]) -> None:
    """Each image has only one grey, so the mixed pixels show how it was mixed."""
    greys = torch.tensor([0.0, 1.0, 10.0, 100.0, 1000.0])
    own = {*zip(LABELS.tolist(), LABELS.roll(1).tolist(), strict=True)}
    seen = set()
    for seed in range(200):
        given = {"image": greys[:, None, None, None].repeat(1, 1, 8, 8), "label": LABELS}
        made = mixed(given, generator(seed), **alphas)
        assert list(made) == ["image", "label", "label.other", "label.share"]
        share = made["label.share"]
        assert (share.dtype, share.shape) == (torch.float64, (5,))
        assert 0.5 <= share[0] <= 1
        assert bool((share == share[0]).all())
        pairs = [*zip(made["label"].tolist(), made["label.other"].tolist(), strict=True)]
        mine = share[0].item() if {*pairs} == own else 1 - share[0].item()
        assert {*pairs} in (own, {pair[::-1] for pair in own})
        expected = mine * greys + (1 - mine) * greys.roll(1)
        torch.testing.assert_close(made["image"].mean((1, 2, 3)), expected)
        boxed = bool((made["image"] == greys[:, None, None, None]).any())
        seen.add((boxed, {*pairs} == own))
    assert len(seen) == 2 * len(alphas), seen


def test_with_mixup_and_cutmix_each_batch_uses_one_of_them() -> None:
    boxed = []
    for seed in range(300):
        made = mixed(batch(), generator(seed), mixup=1.0, cutmix=1.0)["image"]
        boxed.append(bool(torch.isin(made, images()).all()))
    assert 120 < sum(boxed) < 180


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_a_single_image_is_mixed_with_itself(alphas: dict[str, float]) -> None:
    for seed in range(5):
        given = {"image": images()[:1], "label": LABELS[:1]}
        made = mixed(given, generator(seed), **alphas)
        torch.testing.assert_close(made["image"], images()[:1])
        assert made["label"].tolist() == made["label.other"].tolist() == [3]


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 0.5, 1.0, 3.0, 80.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha: float) -> None:
    """Midpoints of 60 x 60 equal squares replace random numbers."""
    strata = [(n + 0.5) / 60 for n in range(60)]
    drawn = [symmetric_beta(alpha, u, v) - 0.5 for u in strata for v in strata]
    second = 1 / (4 * (2 * alpha + 1))
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert statistics.fmean(drawn) == pytest.approx(0, abs=1e-9)
    assert statistics.fmean(x**2 for x in drawn) == pytest.approx(second, rel=0.03)
    assert statistics.fmean(x**4 for x in drawn) == pytest.approx(fourth, rel=0.05)


@pytest.mark.parametrize(
    ("alpha", "below"),
    [
        (0.5, lambda x: 2 / math.pi * math.asin(math.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: x * x * (3 - 2 * x)),
    ],
)
def test_shares_follow_the_beta_distribution(alpha: float, below: Callable[[float], float]) -> None:
    strata = [(n + 0.5) / 100 for n in range(100)]
    drawn = sorted(symmetric_beta(alpha, u, v) for u in strata for v in strata)
    for number, x in enumerate(drawn):
        assert below(x) == pytest.approx((number + 0.5) / len(drawn), abs=0.01)


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-9, 1.0, 1e9, 1.7e308])
def test_shares_are_in_0_to_1_for_every_alpha_and_draw(alpha: float) -> None:
    ends = [0.0, 2**-53, 0.25, 0.5, 0.75, 1 - 2**-53]
    drawn = [symmetric_beta(alpha, u, v) for u in ends for v in ends]
    assert all(0 <= share <= 1 for share in drawn)
    if alpha <= 1e-300:  # each share is that of a single image; u = 0 gives 0.5 for every alpha
        assert {*drawn} <= {0.0, 0.5, 1.0}


def test_draws_depend_only_on_the_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (mixed(batch(), generator(n), mixup=1, cutmix=1) for n in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])
    assert torch.equal(torch.get_rng_state(), before)


# Batches as a run makes them.

OWN = {"size": 8, "channels": 1, "classes": 40, "train_samples": 23, "test_samples": 11}
AUGMENTED = {"pad": 2, "flip": True, "augment": "randaugment"}


@pytest.fixture
def make(options: Options) -> Callable[..., Batches]:
    """Return a function that makes batches of 6 out of 23 samples, with changes of options."""

    def batches(seed: int = 0, **changes: object) -> Batches:
        dataset = Synthetic(**options(**OWN | AUGMENTED | changes))
        return dataset.batches(dataset.load(), 6, seed, CPU)

    return batches


def test_batches_are_mixed_after_all_other_augmentation(make: Callable[..., Batches]) -> None:
    """Images are first cropped, mirrored, augmented and normalised.

    A short last batch is mixed too.
    """
    plain, mixing = make(), make(mixup=0.4)
    for number in range(4):
        expected, found = plain.train(2, number), mixing.train(2, number)
        assert list(expected) == ["image", "label"]
        share = found["label.share"][0].item()
        if not torch.equal(found["label"], expected["label"]):
            share = 1 - share
        before = expected["image"].roll(1, 0)
        torch.testing.assert_close(
            found["image"], share * expected["image"] + (1 - share) * before, atol=1e-5, rtol=1e-5
        )


def test_seed_epoch_and_batch_each_change_the_share(make: Callable[..., Batches]) -> None:
    zero, one = make(0, mixup=1.0, cutmix=1.0), make(1, mixup=1.0, cutmix=1.0)
    four = [zero.train(0, 0), zero.train(0, 1), zero.train(1, 0), one.train(0, 0)]
    assert len({batch["label.share"][0].item() for batch in four}) == 4
    again = make(0, mixup=1.0, cutmix=1.0).train(1, 0)
    assert all(torch.equal(again[name], four[2][name]) for name in again)


def test_mixing_does_not_depend_on_the_augmentation(make: Callable[..., Batches]) -> None:
    """Mixing has its own seed. With the seed of the augmentation, shares would depend on crops."""
    expected = make().train(2, 1)
    alphas = {"mixup": 0.4, "cutmix": 1.0}
    made = mixed(expected, generator(seeding.mixing(0, 2, 1)), **alphas)
    found = make(**alphas).train(2, 1)
    assert found.keys() == made.keys()
    assert all(torch.equal(found[name], made[name]) for name in made)


@pytest.mark.parametrize("split", ["test", "train"])
def test_evaluation_is_never_mixed(make: Callable[..., Batches], split: str) -> None:
    expected = make().evaluation(split, 1, 4)
    found = make(mixup=1.0, cutmix=1.0).evaluation(split, 1, 4)
    assert torch.equal(found["image"], expected["image"])
    assert torch.equal(found["label"], expected["label"])
    assert torch.equal(found["label.other"], expected["label"])
    assert found["label.share"].tolist() == [1.0] * 4


@pytest.mark.parametrize("keys", [{"mixup": 0.5}, {"cutmix": 0.5}])
def test_mixing_never_waits_for_the_device(
    options: Options, no_waiting: NoWaiting, keys: dict[str, float]
) -> None:
    dataset = Synthetic(**options(**OWN | keys))
    batches = dataset.batches(dataset.load(), 6, 0, DEVICE)
    with no_waiting:
        made = [batches.train(0, 0), batches.evaluation("test", 0, 4)]
    assert {tensor.device for each in made for tensor in each.values()} == {DEVICE}


def test_mixing_does_not_change_the_identity_of_the_data(options: Options) -> None:
    """The identity is still that of the files, and the data set's task is unchanged."""
    plain, mixing = (Synthetic(**options(**OWN, mixup=alpha)) for alpha in (0.0, 0.2))
    assert (plain.mixed, mixing.mixed) == ({}, {"data.mixup": 0.2})
    assert plain.identity(plain.load()) == mixing.identity(mixing.load())
    assert plain.task == mixing.task


def test_a_gpu_mixes_the_same_images() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for seed in range(6):
        here = mixed(batch(), generator(seed), mixup=1.0, cutmix=1.0)
        given = {name: tensor.cuda() for name, tensor in batch().items()}
        there = mixed(given, generator(seed), mixup=1.0, cutmix=1.0)
        assert {name: t.cpu().tolist() for name, t in there.items()} == {
            name: t.tolist() for name, t in here.items()
        }
