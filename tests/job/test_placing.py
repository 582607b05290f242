import os

import pytest
import torch
from torch import nn

from ppll_cli.job.placing import placed, prepare_compiler

CPU = torch.device("cpu")


class Halves(nn.Module):
    """Has no parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_maps_are_channels_last_for_any_image() -> None:
    network = placed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), CPU, compiled=False)
    made = network(torch.rand(2, 3, 6, 6))
    assert made.is_contiguous(memory_format=torch.channels_last)
    made.sum().backward()
    weight = next(network.parameters())
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()


def test_networks_without_parameters_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    linear, halves = nn.Linear(2, 2), Halves()
    placed(linear, CPU, compiled=True)
    placed(halves, CPU, compiled=True)
    placed(nn.Linear(2, 2), CPU, compiled=False)
    assert compiled == [linear]


@pytest.mark.slow
@pytest.mark.timeout(900)  # the C++ compiler is slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch 2.11 uses it
def test_a_compiled_network_computes_the_same_for_any_batch_size() -> None:
    prepare_compiler()
    from torch._inductor import codecache

    assert codecache._HEADER_DIR.startswith(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    network = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    network.load_state_dict(plain.state_dict())
    placed(network, CPU, compiled=True)
    for samples in (5, 3):
        x = torch.rand(samples, 4)
        network(x).sum().backward()
        plain(x).sum().backward()
        torch.testing.assert_close(network(x), plain(x))
    gradients = [parameter.grad for parameter in plain.parameters()]
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], gradients)
