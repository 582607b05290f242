"""Random noise from a global generator made `ll` and `ppll` end with different weights."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppll_cli.data.batches import Ahead, generator_of
from ppll_cli.data.repeatable import checked_draws


class Noise:
    """Makes batches of one number, which a function draws."""

    steps_per_epoch = 3

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def train(self, epoch: int, batch: int) -> dict[str, Tensor]:
        return {"x": torch.tensor([self.draw()], dtype=torch.float64)}

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, Tensor]:
        return self.train(0, 0)


def of_torch() -> float:
    return float(torch.rand(()))


def of_numpy() -> float:
    return float(np.random.rand())


@pytest.mark.parametrize(
    ("draw", "library"),
    [(of_torch, "torch"), (of_numpy, "numpy.random"), (random.random, "random")],
)
def test_random_numbers_of_a_global_generator_are_refused(
    draw: Callable[[], float], library: str
) -> None:
    ahead = Ahead(Noise(draw), threads=1)
    refused = rf"train\(\) draws random numbers from the global generator of {library},"
    with pytest.raises(TypeError, match=refused):
        ahead.train(0, 0)


def test_a_seeded_generator_is_accepted() -> None:
    ahead = Ahead(Noise(lambda: float(torch.rand((), generator=generator_of(1)))), threads=1)
    assert torch.equal(ahead.train(0, 0)["x"], ahead.train(0, 1)["x"])


def test_a_seeded_global_generator_of_numpy_is_accepted() -> None:
    def draw() -> float:
        np.random.seed(3)
        return of_numpy()

    made = checked_draws(lambda: {**Noise(draw).train(0, 0), "y": torch.tensor([torch.nan])})
    assert made["x"] == draw()


def test_what_is_no_batch_is_left_to_the_check_of_batches() -> None:
    made: Any = checked_draws(lambda: [of_numpy()])  # type: ignore[arg-type, return-value]
    assert isinstance(made, list)
