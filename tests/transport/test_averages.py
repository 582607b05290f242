"""Buckets of gradients: when and in which order their averages start, and the results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.transport import averages
from ppll_cli.transport.averages import Average
from ppll_cli.transport.replicas import Replicas


class Twins(Replicas):
    """Another replica with the same gradients. It records what is added up, and when."""

    count = 2

    def __init__(self) -> None:
        self.log: list[str] = []

    def add(self, tensor: Tensor) -> "Twins":  # type: ignore[override]
        self.log.append(f"{len(tensor)} numbers")
        tensor.mul_(2)
        return self

    def wait(self) -> None:
        """Record the wait. The sum is already there."""
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
    """Record when the backward reaches each layer.

    The input must require a gradient: otherwise torch 2.11 warns that it calls these hooks.
    """
    for number, layer in enumerate(network):

        def note(*_: object, number: int = number) -> None:
            log.append(f"layer {number}")

        layer.register_full_backward_pre_hook(note)


def units_of(*networks: nn.Module) -> list[list[nn.Parameter]]:
    return [list(network.parameters()) for network in networks]


def test_a_bucket_starts_during_the_backward() -> None:
    network, twins = layers(3), Twins()
    average = Average(twins, units_of(network), finite)
    watched(network, twins.log)
    average.start()
    network(torch.ones(1, 2, requires_grad=True)).sum().backward()
    average.complete()
    sums = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    average.finish()
    # 4 gradients, how many replicas have each, and how many replicas had a non-finite loss
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


def test_only_a_backward_after_start_is_averaged() -> None:
    network, twins = layers(1), Twins()
    average = Average(twins, units_of(network), finite)
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


def test_buckets_start_in_the_same_order_if_a_gradient_is_missing() -> None:
    network, twins = layers(3), Twins()
    average = Average(twins, units_of(network), finite)
    watched(network, twins.log)
    average.start()
    network[0](torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert twins.log == ["layer 0"]
    average.complete()
    assert twins.log == ["layer 0", *["6 numbers"] * 3]
    average.finish()
    missing = [parameter.grad is None for parameter in network.parameters()]
    assert missing == [False, True, True]


@pytest.mark.parametrize(
    "make",
    [
        lambda twins, network: Average(twins, units_of(network), finite, early=False),
        lambda twins, network: Average(twins, units_of(network, network), finite),
    ],
    ids=["not early", "parameters of two networks"],
)
def test_buckets_without_hooks_start_after_the_backward(
    make: Callable[[Twins, nn.Module], Average],
) -> None:
    network, twins = layers(2), Twins()
    average = make(twins, network)
    average.start()
    network(torch.ones(1, 2)).sum().backward()
    assert twins.log == []
    average.complete()
    assert twins.log == ["6 numbers"] * 2


def test_finish_tells_whether_a_replica_had_a_nonfinite_loss() -> None:
    network, twins = layers(1), Twins()
    average = Average(twins, units_of(network), lambda: True)
    average.start()
    network(torch.ones(1, 2)).sum().backward()
    average.complete()
    assert average.finish()


def test_frozen_parameters_are_left_out() -> None:
    network, twins = layers(3), Twins()
    network[1].requires_grad_(False)
    average = Average(twins, units_of(network), finite)
    average.start()
    network(torch.ones(1, 2)).sum().backward()
    assert twins.log == ["6 numbers"] * 2
    average.complete()
    average.finish()
    assert network[1].weight.grad is None


def test_parameters_of_different_dtypes_share_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averages, "BUCKET_BYTES", 2**20)
    network, twins = layers(3), Twins()
    network[1].double()
    average = Average(twins, units_of(network), finite)
    average.start()
    average.complete()
    assert twins.log == ["11 numbers", "6 numbers"]


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [(2, ["16 numbers"]), (3, ["6 numbers", "11 numbers"])],  # the backward starts at the last unit
)
def test_with_three_replicas_no_bucket_has_parameters_of_two_units(
    monkeypatch: pytest.MonkeyPatch, replicas: int, expected: list[str]
) -> None:
    """The units of a stage depend on the schedule, but all schedules must add in the same order."""
    monkeypatch.setattr(averages, "BUCKET_BYTES", 2**20)
    monkeypatch.setattr(Twins, "count", replicas)
    network, twins = layers(3), Twins()
    average = Average(twins, units_of(network[:2], network[2]), finite)
    average.start()
    average.complete()
    assert twins.log == expected


class OnCuda(nn.Parameter):
    """A parameter on CPU that claims to be on CUDA."""

    device = torch.device("cuda")


def test_buckets_are_larger_on_cuda() -> None:
    parameters = [nn.Parameter(torch.empty(2**18)) for _ in range(30)]  # 1 MiB for each
    counted = [len(bucket) for bucket in averages._in_buckets(parameters)]
    assert counted == [1] * 30
    on_cuda = [OnCuda(parameter) for parameter in parameters]
    counted = [len(bucket) for bucket in averages._in_buckets(on_cuda)]
    assert counted == [25, 5]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each call that would wait for a CUDA device."""
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return original(*args, **options)

        return call

    for name in ("tolist", "item", "new_tensor", "cpu", "__bool__", "__float__"):
        monkeypatch.setattr(Tensor, name, counted(name))
    return calls


def as_on_cuda(*networks: nn.Module) -> Average:
    """Return an average that computes on CPU as it would on CUDA."""
    average = Average(Twins(), units_of(*networks), finite)
    average._on_cpu = False
    return average


@pytest.mark.parametrize("convolutions", [False, True])
def test_averaging_never_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, no_waiting: list[str], convolutions: bool
) -> None:
    """Each bucket records which gradients exist. This once waited for the device.

    It happened inside the backward. Convolutions have weights in channels-last format.
    """
    copies: list[int] = []

    def copy(targets: list[Tensor], sources: list[Tensor]) -> None:
        for target, source in zip(targets, sources, strict=True):
            # otherwise CUDA would copy one tensor after the other
            assert target.stride() == source.stride()
            target.copy_(source)
        copies.append(len(targets))

    monkeypatch.setattr(torch, "_foreach_copy_", copy)
    monkeypatch.setattr(averages, "BUCKET_BYTES", 2**20)
    monkeypatch.setattr(Twins, "count", 3)  # so each unit has a bucket
    network, image = layers(3), torch.ones(1, 2)
    if convolutions:
        network = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(3)))
        network.to(memory_format=torch.channels_last)
        image = torch.ones(1, 4, 9, 9)
    average = as_on_cuda(*network)
    average.start()
    network(image).sum().backward()
    average.complete()
    average.finish()
    assert no_waiting == []
    # one copy in each direction for each of three buckets
    assert copies == [2 if convolutions else 1] * 6


def test_counts_of_missing_gradients_are_read_once_for_all_buckets(no_waiting: list[str]) -> None:
    network = layers(4)
    average = as_on_cuda(*network)
    average.start()
    network[0](torch.ones(1, 2)).sum().backward()
    average.complete()
    average.finish()
    assert no_waiting == ["tolist"]
    assert [parameter.grad is None for parameter in network.parameters()] == [False] + [True] * 3


class Other(Twins):
    """Another replica that has gradients for all parameters. All of them are 1."""

    def add(self, tensor: Tensor) -> "Other":  # type: ignore[override]
        tensor[:-1] += 1
        return self


def test_a_missing_gradient_is_taken_from_another_replica() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3))
    network.to(memory_format=torch.channels_last)
    average = Average(Other(), units_of(*network), finite)
    average.start()
    network[0](torch.ones(1, 2, 5, 5)).sum().backward()
    average.complete()
    own = [p.grad.clone() for p in network[0].parameters() if p.grad is not None]
    average.finish()
    for parameter, gradient in zip(network[0].parameters(), own, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient + 1)
    for parameter in network[1].parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert bool((parameter.grad == 1).all())
