"""A unit that computes with weights of another unit, or with weights it does not register."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.trace import problem_of, trace
from ppll_cli.models.unit import Unit

SPECS = {"x": ValueSpec((3,), torch.float32)}


class Listed(nn.Module):
    """Keeps its layers in a plain list, in which torch does not find their parameters."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = [*layers]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Moved(nn.Linear):
    """Has a gradient inside of its forward, of a tensor that is no parameter."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            energy = super().forward(start).square().sum()
            (slope,) = torch.autograd.grad(energy, start, create_graph=True)
        return x - slope


def problem(build: Callable[[], nn.Module]) -> str:
    unit = Unit("odd", build)
    return problem_of(unit, SPECS, trace([unit], SPECS)[0].outputs)


def test_a_unit_may_not_use_another_units_weights() -> None:
    """Such weights were tied on one stage, and missing on two."""
    with torch.device("meta"):
        other = nn.Linear(3, 3)
    assert problem(lambda: Listed(other)).startswith("computes with a parameter that is not")


def test_a_unit_may_not_hide_its_weights() -> None:
    """Such weights were neither trained nor saved."""
    assert problem(lambda: Listed(nn.Linear(3, 3))).startswith("computes with a parameter")


@pytest.mark.parametrize(
    "build",
    [
        lambda: Listed(nn.Linear(3, 3).requires_grad_(False)),
        lambda: Moved(3, 3),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.Identity,
    ],
    ids=["frozen", "gradient in forward", "weight norm", "no parameters"],
)
def test_other_units_are_accepted(build: Callable[[], nn.Module]) -> None:
    assert not problem(build)
