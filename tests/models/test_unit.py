"""What a unit's network takes and returns, by name."""

from typing import Any

import pytest
import torch
from torch import nn

from ppll_cli.models.unit import Unit

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
        (("x",), None, "unit odd returned NoneType instead of the tensor x"),
        (("x", "y"), (ONE, 3), "unit odd returned int instead of the tensor y"),
        (("x", "y"), ONE, r"'odd' writes x, y, but returned 1 value\(s\)"),
        (("x",), (ONE, ONE), r"'odd' writes x, but returned 2 value\(s\)"),
    ],
)
def test_other_values_are_refused(writes: tuple[str, ...], returned: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        Unit("odd", nn.Identity, writes=writes).written(returned)
