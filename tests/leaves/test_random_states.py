import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ppll_cli.leaves.random_states import (
    generators_of,
    noticed_draws,
    random_states,
    restore_random_states,
    seeded,
)

DRAWS: list[Callable[[], float]] = [
    lambda: float(torch.rand(())),
    lambda: float(torch.rand((), generator=generators_of(torch.device("cuda", 1))[1])),
    lambda: float(np.random.rand()),
    random.random,
]


@pytest.fixture(autouse=True)
def _two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "default_generators", [torch.Generator() for _ in range(2)])


@pytest.mark.parametrize("draw", DRAWS, ids=["torch", "cuda", "numpy", "python"])
def test_generators_are_seeded_and_restored(draw: Callable[[], float]) -> None:
    def drawn(seed: int) -> list[float]:
        with seeded(seed, torch.device("cuda", 1)):
            return [draw(), draw()]

    draw()
    states = random_states(), [g.get_state() for g in torch.cuda.default_generators]
    assert drawn(3) == drawn(3)
    assert not set(drawn(3)) & set(drawn(4))
    assert random_states() == states[0]
    now = [g.get_state() for g in torch.cuda.default_generators]
    assert all(torch.equal(a, b) for a, b in zip(now, states[1], strict=True))


def test_states_can_be_restored() -> None:
    states = random_states()
    expected = random.random(), np.random.rand()
    restore_random_states(states)
    assert (random.random(), np.random.rand()) == expected


@pytest.mark.parametrize(
    ("draw", "library"), list(zip(DRAWS, ["torch", "torch", "numpy.random", "random"], strict=True))
)
def test_each_draw_is_noticed(draw: Callable[[], float], library: str) -> None:
    generators = generators_of(torch.device("cuda", 1))
    with noticed_draws(generators) as drawn:
        draw()
    assert drawn == [library]
    with noticed_draws(generators) as drawn, seeded(0, torch.device("cuda", 1)):
        draw()
    assert drawn == []
