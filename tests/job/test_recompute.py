"""Recomputation in the backward frees memory in between, and changes no result."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ppll_cli.job.recompute import recomputed
from tests.conftest import assert_same

SEED = partial(torch.manual_seed, 3)


class Watched(nn.Module):
    """Has two layers.

    It counts its passes, and holds a weak reference to the tensor between the layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.passes = 0
        self.between: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        between = self.first(x).exp()
        self.between = weakref.ref(between)
        made: Tensor = self.second(between.sin())
        return made


def test_tensors_inside_a_unit_are_freed_until_the_backward() -> None:
    network = Watched()
    made = recomputed(network, SEED, torch.rand(3, 4))
    assert (network.passes, network.between()) == (1, None)
    torch.autograd.backward(made.sum())
    assert network.passes == 2
    kept = network(torch.rand(3, 4))
    assert network.between() is not None
    del kept


def drawing() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5))


def normed() -> nn.Module:
    """Return a network with BatchNorm in both modes: cumulative and exponential averages."""
    return nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None), nn.ReLU(inplace=True), nn.BatchNorm1d(4)
    )


def iterating() -> nn.Module:
    """Return a network whose forward reads and updates a buffer. It estimates a singular vector."""
    return nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Tanh())


@pytest.mark.parametrize("build", [drawing, normed, iterating])
def test_several_forwards_before_their_backwards_are_recomputed_right(
    build: Callable[[], nn.Module],
) -> None:
    """Micro-batches do this. Each is recomputed with the buffers of its own forward."""

    def trained(run: Callable[..., Tensor]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        network = build()
        inputs = [torch.rand(5, 4, requires_grad=True) for _ in range(3)]
        made = [run(network, x) for x in inputs]
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for each in made:
            torch.autograd.backward(each.square().sum())
        assert_same(network.state_dict(), state)  # the backward changed no buffer
        found = {f"input {n}": x.grad for n, x in enumerate(inputs)}
        found |= {name: p.grad for name, p in network.named_parameters()}
        return {**state, **{f"gradient of {n}": g for n, g in found.items() if g is not None}}

    def plain(network: nn.Module, x: Tensor) -> Tensor:
        SEED()
        made: Tensor = network(x)
        return made

    expected = trained(plain)
    assert_same(trained(lambda network, x: recomputed(network, SEED, x)), expected)
    assert len(expected) >= 3 + 4
