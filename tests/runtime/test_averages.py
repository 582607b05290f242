"""Buckets of gradients: when they begin, in which order, and what they make."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.runtime import averages
from ppll_cli.runtime.averages import Average
from ppll_cli.transport.replicas import Replicas


class Twins(Replicas):
    """Another replica that has the same gradients; notes what is added up, and when."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def add(self, tensor: Tensor) -> "Twins":  # type: ignore[override]
        self.log.append(f"{len(tensor)} numbers")
        tensor.mul_(2)
        return self

    def wait(self) -> None:
        """All is there at once."""
        self.log.append("waited")


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averages, "BUCKET_BYTES", 4)


def finite() -> bool:
    return False


def layers(count: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(count)))


def watched(network: nn.Sequential, log: list[str]) -> None:
    """Note when the backward reaches each layer."""
    for number, layer in enumerate(network):

        def note(*_: object, number: int = number) -> None:
            log.append(f"layer {number}")

        layer.register_full_backward_pre_hook(note)


def parameters_of(network: nn.Module) -> list[nn.Parameter]:
    return list(network.parameters())


def test_a_bucket_begins_while_the_backward_goes_on() -> None:
    network, twins = layers(3), Twins()
    average = Average(twins, parameters_of(network), finite)
    watched(network, twins.log)
    average.start()
    network(torch.ones(1, 2)).sum().backward()
    average.complete()
    sums = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    average.finish()
    # 4 gradients, how many replicas have them, and how many saw a loss that is no number
    assert twins.log == [
        "layer 2",
        *("6 numbers", "layer 1"),
        *("6 numbers", "layer 0"),
        "6 numbers",
        *["waited"] * 3,
    ]
    for parameter, single in zip(network.parameters(), sums, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, 2 * single)


def test_only_the_last_backward_is_averaged() -> None:
    network, twins = layers(1), Twins()
    average = Average(twins, parameters_of(network), finite)
    network(torch.ones(1, 2)).sum().backward()
    average.complete()
    assert twins.log == []
    average.start()
    network(torch.ones(1, 2)).sum().backward()
    average.complete()
    average.finish()
    assert twins.log == ["6 numbers", "waited"]
    network(torch.ones(1, 2)).sum().backward()
    average.complete()
    assert twins.log == ["6 numbers", "waited"]


def test_the_order_is_the_same_where_a_gradient_is_missing() -> None:
    network, twins = layers(3), Twins()
    average = Average(twins, parameters_of(network), finite)
    watched(network, twins.log)
    average.start()
    network[0](torch.ones(1, 2)).sum().backward()
    assert twins.log == ["layer 0"]
    average.complete()
    assert twins.log == ["layer 0", *["6 numbers"] * 3]
    average.finish()
    missing = [parameter.grad is None for parameter in network.parameters()]
    assert missing == [False, True, True]


def tied(first: nn.Module, second: nn.Module) -> Sequence[nn.Parameter]:
    return [*first.parameters(), *second.parameters()]


@pytest.mark.parametrize(
    "make",
    [
        lambda twins, network: Average(twins, parameters_of(network), finite, early=False),
        lambda twins, network: Average(twins, tied(network, network), finite),
    ],
    ids=["not early", "parameters of two networks"],
)
def test_what_begins_when_the_backward_has_ended(
    make: Callable[[Twins, nn.Module], Average],
) -> None:
    network, twins = layers(2), Twins()
    average = make(twins, network)
    average.start()
    network(torch.ones(1, 2)).sum().backward()
    assert twins.log == []
    average.complete()
    assert twins.log == ["6 numbers"] * 2


def test_a_loss_that_is_no_number_is_told_to_all() -> None:
    network, twins = layers(1), Twins()
    average = Average(twins, parameters_of(network), lambda: True)
    average.start()
    network(torch.ones(1, 2)).sum().backward()
    average.complete()
    assert average.finish()


def test_what_is_not_learnt_is_left_out() -> None:
    network, twins = layers(3), Twins()
    network[1].requires_grad_(False)
    average = Average(twins, parameters_of(network), finite)
    average.start()
    network(torch.ones(1, 2)).sum().backward()
    assert twins.log == ["6 numbers"] * 2
    average.complete()
    average.finish()
    assert network[1].weight.grad is None


def test_types_do_not_share_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averages, "BUCKET_BYTES", 2**20)
    network, twins = layers(3), Twins()
    network[1].double()
    average = Average(twins, parameters_of(network), finite)
    average.start()
    average.complete()
    assert twins.log == ["11 numbers", "6 numbers"]
