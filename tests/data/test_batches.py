import random
import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch

from ppll_cli.data.batches import Ahead, Batches, generator_of, steps_per_epoch
from ppll_cli.data.synthetic import Synthetic
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.random_states import noticed_draws
from tests.no_waiting import DEVICE, NoWaiting

Options = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")
OWN = {"size": 5, "channels": 1, "classes": 40, "train_samples": 23, "test_samples": 11}
AUGMENTED = {"pad": 2, "pad_mode": "reflect", "flip": True}


@pytest.fixture
def make(options: Options) -> Callable[..., Batches]:
    """Return a function that makes batches of 6 out of 23 samples, with changes of options."""

    def batches(seed: int = 0, batch_size: int = 6, **changes: object) -> Batches:
        dataset = Synthetic(**options(**OWN | changes))
        return dataset.batches(dataset.load(), batch_size, seed, CPU)

    return batches


@pytest.mark.parametrize(
    ("samples", "batch_size", "drop_last", "steps"),
    [
        (23, 6, False, 4),
        (23, 6, True, 3),
        (24, 6, False, 4),
        (24, 6, True, 4),
        (5, 6, False, 1),
        (6, 6, True, 1),
        (1, 1, False, 1),
    ],
)
def test_steps_per_epoch_count_batches(
    samples: int, batch_size: int, drop_last: bool, steps: int
) -> None:
    assert steps_per_epoch(samples, batch_size, drop_last) == steps


def test_an_epoch_without_any_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=5 at most") as caught:
        steps_per_epoch(5, 6, drop_last=True)
    assert caught.value.key == "data.drop_last"


def test_an_epoch_has_every_sample_once_and_a_shorter_last_batch(
    make: Callable[..., Batches],
) -> None:
    batches = make()
    epoch = [batches.train(0, batch) for batch in range(batches.steps_per_epoch)]
    assert [len(batch["label"]) for batch in epoch] == [6, 6, 6, 5]
    assert all(batch["image"].shape[1:] == (1, 5, 5) for batch in epoch)
    assert all(batch["image"].dtype == torch.float32 for batch in epoch)
    assert all(batch["label"].dtype == torch.int64 for batch in epoch)
    seen = sorted(bytes(image.numpy()) for batch in epoch for image in batch["image"])
    images = batches.splits["train"].images
    assert seen == sorted(bytes(image.numpy()) for image in (images / 255 - 0.5) / 0.25)


def test_images_keep_their_labels(make: Callable[..., Batches]) -> None:
    batches = make()
    images = (batches.splits["train"].images / 255 - 0.5) / 0.25
    batch = batches.train(3, 1)
    for image, label in zip(batch["image"], batch["label"], strict=True):
        sample = int((images == image).flatten(1).all(1).nonzero())
        assert batches.splits["train"].labels[sample] == label


def test_a_short_last_batch_can_be_left_out(make: Callable[..., Batches]) -> None:
    whole, dropped = make(**AUGMENTED), make(**AUGMENTED, drop_last=True)
    assert dropped.steps_per_epoch == 3
    for batch in range(3):
        assert torch.equal(dropped.train(1, batch)["image"], whole.train(1, batch)["image"])


def test_a_batch_does_not_depend_on_earlier_batches(make: Callable[..., Batches]) -> None:
    torch.manual_seed(1)
    ordered = make(**AUGMENTED)
    expected = {(e, b): ordered.train(e, b) for e in range(2) for b in range(4)}
    torch.manual_seed(2)
    jumping = make(**AUGMENTED)
    for key in [(1, 3), (0, 3), (0, 0), (1, 0), (1, 0), (0, 2)]:
        batch = jumping.train(*key)
        assert torch.equal(batch["image"], expected[key]["image"])
        assert torch.equal(batch["label"], expected[key]["label"])


def test_seed_epoch_and_batch_each_change_the_samples(make: Callable[..., Batches]) -> None:
    zero, one = make(0, **AUGMENTED), make(1, **AUGMENTED)
    four = [zero.train(0, 0), zero.train(0, 1), zero.train(1, 0), one.train(0, 0)]
    assert len({bytes(batch["image"].numpy()) for batch in four}) == 4
    assert len({tuple(batch["label"].tolist()) for batch in four}) == 4


def test_augmentation_differs_between_epochs(make: Callable[..., Batches]) -> None:
    batches = make(**AUGMENTED, train_samples=1)
    epochs = [batches.train(epoch, 0)["image"] for epoch in range(20)]
    assert len({bytes(image.numpy()) for image in epochs}) > 10


def test_evaluation_is_in_order_and_without_augmentation(make: Callable[..., Batches]) -> None:
    batches = make(**AUGMENTED, val_fraction=0.2)
    for split, samples in (("test", 11), ("val", 5), ("train", 18)):
        count = -(-samples // 4)
        parts = [batches.evaluation(split, batch, 4) for batch in range(count)]
        assert [len(part["label"]) for part in parts[:-1]] == [4] * (count - 1)
        images = torch.cat([part["image"] for part in parts])
        assert len(images) == samples
        assert torch.equal(images, (batches.splits[split].images / 255 - 0.5) / 0.25)
        labels = torch.cat([part["label"] for part in parts])
        assert torch.equal(labels, batches.splits[split].labels)


def test_images_in_memory_are_bytes(make: Callable[..., Batches]) -> None:
    assert {split.images.dtype for split in make().splits.values()} == {torch.uint8}


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_making_a_batch_never_waits_for_the_device(
    options: Options, no_waiting: NoWaiting, mode: str
) -> None:
    """A new epoch copies its order.

    Each batch copies positions of crops, and which images to mirror.
    """
    dataset = Synthetic(**options(**OWN | AUGMENTED | {"pad_mode": mode}))
    batches = dataset.batches(dataset.load(), 6, 0, DEVICE)
    with no_waiting:
        for batch in range(batches.steps_per_epoch):
            made = batches.train(0, batch)
            assert {tensor.device for tensor in made.values()} == {DEVICE}
            assert no_waiting.staged_copies == 1 + 2 * (batch + 1)
        batches.evaluation("test", 0, 4)


@pytest.mark.parametrize("start", [(0, 0), (1, 2), (2, 3)])
def test_batches_made_in_advance_are_the_same(
    make: Callable[..., Batches], start: tuple[int, int]
) -> None:
    plain, ahead = make(**AUGMENTED), Ahead(make(**AUGMENTED), threads=1, seed=0)
    steps = [divmod(step, 4) for step in range(4 * start[0] + start[1], 14)]
    for epoch, batch in steps:
        expected, found = plain.train(epoch, batch), ahead.train(epoch, batch)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    held_out = plain.evaluation("test", 1, 4)
    assert torch.equal(ahead.evaluation("test", 1, 4)["image"], held_out["image"])


def test_the_next_batch_is_made_in_advance(
    make: Callable[..., Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, made = make(), Queue[tuple[int, int, str]]()
    plain = batches.train

    def train(epoch: int, batch: int) -> dict[str, torch.Tensor]:
        made.put((epoch, batch, threading.current_thread().name))
        return plain(epoch, batch)

    monkeypatch.setattr(batches, "train", train)
    ahead = Ahead(batches, threads=1, seed=0)
    for batch in range(batches.steps_per_epoch):
        ahead.train(0, batch)
    seen = [made.get(timeout=30) for _ in range(batches.steps_per_epoch + 1)]
    assert [place[:2] for place in seen] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert threading.main_thread().name not in {name for _, _, name in seen}


def test_an_error_in_advance_is_raised_when_the_batch_is_requested(
    make: Callable[..., Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make()
    plain = batches.train

    def train(epoch: int, batch: int) -> dict[str, torch.Tensor]:
        if batch == 2:
            raise OSError("the file is gone")
        return plain(epoch, batch)

    monkeypatch.setattr(batches, "train", train)
    ahead = Ahead(batches, threads=1, seed=0)
    ahead.train(0, 0)
    ahead.train(0, 1)
    with pytest.raises(OSError, match="the file is gone"):
        ahead.train(0, 2)


class Noise:
    """Makes batches of one random number."""

    steps_per_epoch = 3

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw, self.made = draw, 0

    def train(self, epoch: int, batch: int) -> dict[str, torch.Tensor]:
        self.made += 1
        return {"x": torch.tensor([self.draw()], dtype=torch.float64)}

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, torch.Tensor]:
        return self.train(0, 0)


class NoiseInAdvance(Noise):
    in_advance = True


class Derived(NoiseInAdvance):
    """It may draw differently from its base class."""


DRAWS = pytest.mark.parametrize(
    ("draw", "library"),
    [
        (lambda: float(torch.rand(())), "torch"),
        (lambda: float(np.random.rand()), "numpy.random"),
        (random.random, "random"),
    ],
    ids=["torch", "numpy", "random"],
)


@DRAWS
def test_batches_with_global_random_numbers_depend_only_on_the_seed_and_their_number(
    draw: Callable[[], float], library: str
) -> None:
    def numbers(seed: int, first: int) -> list[float]:
        ahead, found = Ahead(Noise(draw), threads=1, seed=seed), []
        for step in range(first, 7):
            found.append(ahead.train(*divmod(step, 3))["x"].item())
            draw()  # as a network does
        return found

    once = numbers(0, 0)
    assert len(set(once)) == 7
    assert numbers(0, 0) == once
    assert numbers(0, 4) == once[4:]
    assert not set(numbers(1, 0)) & set(once)


@pytest.mark.parametrize("kind", [Noise, Derived])
@DRAWS
def test_the_caller_waits_for_a_batch_with_global_random_numbers(
    draw: Callable[[], float], library: str, kind: type[Noise]
) -> None:
    noise = kind(draw)
    ahead = Ahead(noise, threads=1, seed=0)
    with noticed_draws([torch.default_generator]) as drawn:
        for batch in range(3):
            ahead.train(0, batch)
            assert noise.made == batch + 1
    assert drawn == []


@DRAWS
def test_a_batch_in_advance_must_not_have_global_random_numbers(
    draw: Callable[[], float], library: str
) -> None:
    refused = rf"NoiseInAdvance has in_advance=True, but .* global generator of {library}:"
    with pytest.raises(TypeError, match=refused):
        Ahead(NoiseInAdvance(draw), threads=1, seed=0).train(0, 0)


def test_a_batch_in_advance_may_have_numbers_of_its_own_generator() -> None:
    begun = Queue[None]()

    def draw() -> float:
        begun.put(None)
        return float(torch.rand((), generator=generator_of(1)))

    Ahead(NoiseInAdvance(draw), threads=1, seed=0).train(0, 0)
    for _ in range(2):  # the second batch too, though nobody has asked for it
        begun.get(timeout=30)


@DRAWS
def test_an_error_while_a_batch_is_made_restores_the_generators(
    draw: Callable[[], float], library: str
) -> None:
    def fail() -> float:
        draw()
        raise ValueError("no picture")

    with (
        noticed_draws([torch.default_generator]) as drawn,
        pytest.raises(ValueError, match="no picture"),
    ):
        Ahead(Noise(fail), threads=1, seed=0).train(0, 0)
    assert drawn == []


@DRAWS
def test_evaluation_batches_do_not_depend_on_earlier_random_numbers(
    draw: Callable[[], float], library: str
) -> None:
    def numbers(seed: int) -> list[float]:
        draw()
        ahead = Ahead(Noise(draw), threads=1, seed=seed)
        asked = [(split, number) for split in ("val", "test") for number in (0, 1)]
        return [ahead.evaluation(*each, 4)["x"].item() for each in asked]

    assert numbers(0) == numbers(1)
    assert len(set(numbers(0))) == 4


def test_images_that_are_normalised_twice_are_refused(make: Callable[..., Batches]) -> None:
    batches = make()

    def scaled(epoch: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = Batches.training_images(batches, epoch, batch)
        return images / 255, labels

    batches.training_images = scaled  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"Batches made torch.float32 images, but .* uint8"):
        batches.train(0, 0)
