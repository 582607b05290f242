"""The two halves of a backward have the bits of a whole one, and repeat no expensive operation."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from ppll_cli.job.halves import backward_to_inputs
from ppll_cli.models.vit import Block

SAMPLES, WIDTH = 3, 6


class Shared(nn.Module):
    """Applies the same layers to three inputs, like a detector's head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.head(x), self.head(x.sin()), self.head(x.exp())])


class Loop(nn.Module):
    """Applies one layer three times in sequence, with another layer before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cell, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = torch.tanh(self.cell(x))
        y: Tensor = self.last(x)
        return y


class Tokens(nn.Module):
    """Has parameters that are added, concatenated, or used twice.

    One output depends on no input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.rand(1, WIDTH))
        self.token = nn.Parameter(torch.rand(1, WIDTH))
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.token.expand(2, -1), x * self.scale]) + self.position
        return x * self.scale, self.scale.exp() * self.token


class Frozen(nn.Module):
    """Has a frozen layer, and a layer of which only the weight is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.layers[0].requires_grad_(False)
        self.layers[2].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(nn.Linear(WIDTH, 5), nn.LayerNorm(5), nn.Linear(5, 4)),
    "block": lambda: nn.Sequential(
        *(Block(WIDTH, 2, 8, 0.1, 0.1) for _ in range(2)), nn.BatchNorm1d(SAMPLES)
    ),
    "shared": Shared,
    "loop": Loop,
    "tokens": Tokens,
    "frozen": Frozen,
    "derived": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "none": nn.Tanh,
}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def forward(network: nn.Module, number: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return a network's input, its outputs, and random gradients of the outputs."""
    torch.manual_seed(number)
    x = torch.randn(2, SAMPLES, WIDTH) if isinstance(network, nn.Sequential) else None
    x = torch.randn(SAMPLES, WIDTH) if x is None else x
    x.requires_grad_()
    made = network(x)
    outputs = list(made) if isinstance(made, tuple) else [made]
    return x, outputs, [torch.randn_like(output) for output in outputs]


def weights_of(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def gradients(network: nn.Module, split: bool) -> Sequence[Tensor | None]:
    """Return the gradients of inputs and parameters after three micro-batches."""
    network.zero_grad()
    passed = [forward(network, number) for number in range(3)]
    if split:
        halves = [
            backward_to_inputs(outputs, given, [x], weights_of(network))
            for x, outputs, given in passed
        ]
        assert all(parameter.grad is None for parameter in network.parameters())
        for half in halves:
            half.run()
    else:
        for _, outputs, given in passed:
            torch.autograd.backward(outputs, given)
    found = [x for x, _, _ in passed], list(network.parameters())
    return [tensor.grad for tensors in found for tensor in tensors]


@pytest.mark.parametrize("name", NETWORKS)
def test_two_halves_give_the_same_bits_as_a_whole_backward(name: str) -> None:
    network = NETWORKS[name]()
    whole, halves = gradients(network, split=False), gradients(network, split=True)
    assert sum(gradient is not None for gradient in whole) == 3 + len(weights_of(network))
    for a, b in zip(whole, halves, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)


@pytest.mark.parametrize("name", ["layers", "block", "shared", "tokens", "frozen"])
def test_halves_do_not_repeat_expensive_operations(name: str) -> None:
    """Matrix products and attention take most of the time of a backward."""
    network = NETWORKS[name]()

    def products(split: bool) -> int:
        x, outputs, given = forward(network, 0)
        with Operations() as found:
            if split:
                backward_to_inputs(outputs, given, [x], weights_of(network)).run()
            else:
                torch.autograd.backward(outputs, given)
        large = ("mm.", "attention")
        return sum(n for each, n in found.counts.items() if any(word in each for word in large))

    assert products(split=True) == products(split=False)


class _Held(torch.autograd.Function):
    """Keeps an object until its backward has run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Any) -> Tensor:
        ctx.kept = kept
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].clone(), None


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("name", ["block", "loop"])
def test_the_graph_is_freed_after_the_second_half(name: str, runs: bool) -> None:
    """The graph is freed after the second half has run.

    It is also freed if the second half is dropped.
    """
    network, kept = NETWORKS[name](), nn.Module()
    gone = ref(kept)
    x = torch.rand(2, SAMPLES, WIDTH, requires_grad=True)
    output = network(_Held.apply(x, kept))
    half = backward_to_inputs([output], [torch.ones_like(output)], [x], weights_of(network))
    del kept, output
    assert gone() is not None
    if runs:
        half.run()
    else:
        del half
    assert gone() is None


def test_an_output_without_inputs_still_trains_its_weights() -> None:
    network = nn.Linear(WIDTH, WIDTH)
    x, given = torch.rand(SAMPLES, WIDTH), torch.rand(SAMPLES, WIDTH)
    half = backward_to_inputs([network(x)], [given], [], network.parameters())
    half.run()
    found = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    network(x).backward(given)
    for parameter, gradient in zip(network.parameters(), found, strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def _count(come: Counter[int], parameter: Tensor) -> None:
    come[id(parameter)] += 1


def test_hooks_of_parameters_run_once_in_the_second_half() -> None:
    """Averaging over replicas waits for these hooks."""
    network = Shared()
    come = Counter[int]()
    for parameter in network.parameters():
        hook = partial(_count, come)
        parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    x, outputs, given = forward(network, 0)
    half = backward_to_inputs(outputs, given, [x], weights_of(network))
    assert not come
    half.run()
    assert come == {id(parameter): 1 for parameter in network.parameters()}
