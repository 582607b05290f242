"""Units that cannot run in halves, or twice, are refused by name before the start."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import Unit
from ppll_cli.prepare.trials import check_halves, check_recompute

SPECS = {"x": ValueSpec((3,), torch.float32)}


class _Counting(torch.autograd.Function):
    """A product with a weight. Its gradients depend on the number of backward calls."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.kept = x, weight
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (x, weight) = gradients, ctx.kept
        _Counting.calls += 1
        return gradient * weight * _Counting.calls, (gradient * x).sum(0)


class _Freeing(torch.autograd.Function):
    """The same product. Its first backward frees the saved tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.kept = x, weight
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        if ctx.kept is None:
            raise RuntimeError("nothing is kept any more")
        (gradient,), (x, weight) = gradients, ctx.kept
        ctx.kept = None
        return gradient * weight, (gradient * x).sum(0)


class Own(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.rand(3)), function

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.function.apply(x, self.weight)
        return made


class Hooked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        """Return a product.

        A hook halves its gradient, and would run once in each half of a backward.
        """
        made = super().forward(x)
        if made.requires_grad:
            made.register_hook(lambda g: g / 2)  # type: ignore[no-untyped-call]
        return made


class Unable(nn.Module):
    """Refuses the random inputs of the test."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such values")


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: Own(_Counting), "gives different gradients"),
        (lambda: Own(_Freeing), "fails: nothing is kept any more"),
        (lambda: Hooked(3, 3), "gives different gradients"),
        (Unable, "fails: no such values"),
    ],
    ids=["counting", "freeing", "hooked", "unable"],
)
def test_a_unit_whose_halves_differ_is_refused(build: Callable[[], nn.Module], why: str) -> None:
    units = [Unit("stem", lambda: nn.Linear(3, 3)), Unit("odd", build)]
    with pytest.raises(
        ConfigError, match=f"^schedule=mine: .* the split backward of unit 'odd' {why}"
    ):
        check_halves(("schedule", "mine"), units, [SPECS, SPECS])


class Turning(nn.Linear):
    """Flips a sign in every forward pass, and stores it in no buffer."""

    sign = 1

    def forward(self, x: Tensor) -> Tensor:
        self.sign = -self.sign
        return torch.exp(super().forward(x) * self.sign)


class Growing(nn.Linear):
    """Has one operation more in each forward pass."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        made = super().forward(x)
        for _ in range(self.passes):
            made = torch.cat([made, made.exp()])[: len(x) + self.passes]
        return made.exp()


@pytest.mark.parametrize(
    ("build", "why"),
    [(lambda: Turning(3, 3), "gives different gradients"), (lambda: Growing(3, 3), "fails: .*")],
    ids=["turning", "growing"],
)
def test_a_unit_that_cannot_run_twice_is_refused(build: Callable[[], nn.Module], why: str) -> None:
    units = [Unit("stem", lambda: nn.Linear(3, 3)), Unit("odd", build)]
    refused = f"^recompute=true: .* of unit 'odd' {why}; use recompute=false$"
    with pytest.raises(ConfigError, match=refused) as error:
        check_recompute(units, [SPECS, SPECS])
    assert "\n" not in str(error.value)


def test_random_and_parameterless_units_may_be_split_or_run_twice() -> None:
    units = [
        Unit("drop", lambda: nn.Dropout(0.5)),
        Unit("norm", lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))),
        Unit("two", lambda: nn.Bilinear(3, 3, 2), reads=("x", "y"), writes=("z",)),
    ]
    before = [{**SPECS, "y": SPECS["x"]}] * 3
    check_halves(("schedule", "mine"), units, before)
    check_recompute(units, before)
