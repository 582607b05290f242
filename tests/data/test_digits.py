from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ppll_cli.data import digits
from ppll_cli.data.digits import Digits
from tests.warm import passes_in_a_new_process

Options = Callable[..., dict[str, Any]]
CONFIG = OmegaConf.load(Path(__file__).parents[2] / "conf" / "data" / "digits.yaml")


def pairs(images: Tensor, labels: Tensor) -> list[tuple[bytes, int]]:
    """Return images with their labels, as values that can be sorted."""
    return [(bytes(image.numpy()), int(n)) for image, n in zip(images, labels, strict=True)]


def test_the_split_is_always_the_same_1437_and_360_digits(options: Options) -> None:
    splits = Digits(**options()).load()
    assert splits["train"].images.shape == (1437, 1, 8, 8)
    assert splits["test"].images.shape == (360, 1, 8, 8)
    assert splits["test"].labels[:12].tolist() == [7, 9, 4, 7, 0, 2, 6, 1, 3, 1, 3, 7]


def test_every_digit_is_in_exactly_one_part(options: Options) -> None:
    from sklearn.datasets import load_digits  # no other test needs it, and its import takes seconds

    splits = Digits(**options()).load().values()
    ours = [pair for split in splits for pair in pairs(split.images, split.labels)]
    theirs = load_digits()
    scaled = (torch.from_numpy(theirs.images) * 255 / 16).round().to(torch.uint8)
    assert sorted(ours) == sorted(pairs(scaled, torch.from_numpy(theirs.target)))


def test_grey_values_use_the_whole_range(options: Options) -> None:
    values = sorted(set(Digits(**options()).load()["train"].images.flatten().tolist()))
    assert values[:2] == [0, 16]
    assert len(values) == 17
    assert values[-1] == 255


def test_the_default_normalisation_is_that_of_the_training_images(options: Options) -> None:
    images = Digits(**options()).load()["train"].images.double() / 255
    assert images.mean().item() == pytest.approx(CONFIG.mean[0], abs=5e-5)
    assert images.std().item() == pytest.approx(CONFIG.std[0], abs=5e-5)


def test_digits_are_read_without_importing_scikit_learn(options: Options) -> None:
    assert passes_in_a_new_process(
        "import sys; from ppll_cli.data.digits import Digits; "
        f"Digits(**{options()!r}).load(); assert 'sklearn' not in sys.modules"
    )


def test_digits_are_read_if_scikit_learns_file_is_elsewhere(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Digits(**options()).load()["test"]
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    found = Digits(**options()).load()["test"]
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
