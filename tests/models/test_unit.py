"""What a unit's network takes and returns, by name."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ppll_cli.models.unit import Unit, build_unit

ONE = torch.zeros(2)


def test_a_network_takes_the_tensors_that_the_unit_reads_in_order() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    unit = Unit("sum", nn.Identity, reads=("b", "a"))
    assert [*map(id, unit.inputs({"a": a, "b": b}))] == [id(b), id(a)]


@pytest.mark.parametrize("returned", [ONE, (ONE,)], ids=["tensor", "tuple"])
def test_what_a_network_returns_is_named(returned: Any) -> None:
    assert Unit("one", nn.Identity).written(returned) == {"x": ONE}


@pytest.mark.parametrize(
    ("writes", "returned", "said"),
    [
        (("x",), None, r"^unit odd returned NoneType instead of a tensor for each name .* \(x\)$"),
        (("x", "y"), (ONE, 3), r"^unit odd returned Tensor, int instead of .* \(x, y\)$"),
        (("x", "y"), ONE, r"^unit odd returned Tensor instead of"),
        (("x",), (ONE, ONE), r"^unit odd returned Tensor, Tensor instead of"),
        (("x",), (), r"^unit odd returned nothing instead of"),
    ],
)
def test_other_values_are_refused(writes: tuple[str, ...], returned: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Unit("odd", nn.Identity, writes=writes).written(returned)


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "python": random.random,
    "numpy": np.random.rand,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_initial_weights_depend_only_on_seed_and_name(draw: Callable[[], float]) -> None:
    """They do not depend on numbers drawn before, nor do later numbers depend on them."""

    def build() -> nn.Module:
        layer = nn.Linear(1, 1)
        nn.init.constant_(layer.weight, draw())
        return layer

    def weight(name: str, seed: int) -> float:
        return build_unit(Unit(name, build), seed).get_parameter("weight").item()

    before = weight("a", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        first, second = draw(), draw()
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        assert draw() == first
        assert weight("a", 0) == before
        assert draw() == second
    assert len({before, weight("b", 0), weight("a", 1)}) == 3
