"""What a unit's network takes and returns, by name."""

import random
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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


class _Drawn(nn.Module):
    """A network whose weights come from three generators."""

    def __init__(self) -> None:
        super().__init__()
        drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
        self.weight = nn.Parameter(torch.tensor(drawn))


def test_initial_weights_depend_on_seed_and_name_whatever_generator_makes_them() -> None:
    """The numbers that other code draws stay the same."""
    random.seed(7)
    np.random.seed(7)
    untouched = random.random(), np.random.rand()
    random.seed(7)
    np.random.seed(7)
    one, other = (build_unit(Unit("drawn", _Drawn), seed=3).weight for _ in range(2))
    assert torch.equal(cast(Tensor, one), cast(Tensor, other))
    another = cast(Tensor, build_unit(Unit("another", _Drawn), seed=3).weight)
    assert not (cast(Tensor, one) == another).any()
    assert (random.random(), np.random.rand()) == untouched
