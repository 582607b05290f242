"""Units whose backward cannot run in halves are refused by name, before the start."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import Unit
from ppll_cli.prepare.halves import check_halves

SPECS = {"x": ValueSpec((3,), torch.float32)}


class _Counting(torch.autograd.Function):
    """Its gradient depends on how often it was asked for."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        _Counting.calls += 1
        result: Tensor = gradients[0] * _Counting.calls
        return result


class _Freeing(torch.autograd.Function):
    """It lets go of what it kept at its first backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        if ctx.kept is None:
            raise RuntimeError("nothing is kept any more")
        kept, ctx.kept = ctx.kept, None
        result: Tensor = 2 * kept * gradients[0]
        return result


class Own(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(3, 3), function

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.function.apply(self.linear(x))
        return made


@pytest.mark.parametrize(
    ("function", "why"),
    [(_Counting, "gives other gradients"), (_Freeing, "fails: nothing is kept any more")],
)
def test_a_unit_whose_halves_differ_is_refused(
    function: type[torch.autograd.Function], why: str
) -> None:
    units = [Unit("stem", lambda: nn.Linear(3, 3)), Unit("odd", lambda: Own(function))]
    with pytest.raises(ConfigError, match=f"that of unit 'odd' {why}"):
        check_halves("Mine", units, [SPECS, SPECS])


def test_what_draws_and_what_has_no_parameters_may_be_split() -> None:
    units = [
        Unit("drop", lambda: nn.Dropout(0.5)),
        Unit("norm", lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))),
        Unit("two", lambda: nn.Bilinear(3, 3, 2), reads=("x", "y"), writes=("z",)),
    ]
    check_halves("Mine", units, [{**SPECS, "y": SPECS["x"]}] * 3)
