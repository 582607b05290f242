"""Averages of weights: their values, and that they change nothing else."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ppll_cli.job.checkpoint import EMA
from ppll_cli.models.unit import Unit
from ppll_cli.worker.ema import Ema
from tests.conftest import assert_same
from tests.prepare.test_weights import saved, tiny_model
from tests.worker.cases import DATA, FEW_STEPS, RESNET, SGD, VIT
from tests.worker.inside import Outcome, run_inside

COURSE = [*DATA, FEW_STEPS, "optim.ema=0.8"]


class Tied(nn.Module):
    """Two layers that share a weight, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)


def averaged() -> tuple[Tied, Ema]:
    network = Tied()
    unit = Unit("tied", lambda: network)
    return network, Ema([(unit, network)], 0.5)


def test_an_average_follows_the_weights() -> None:
    """At first the average changes faster: the kept part is (1 + step) / (10 + step), later 0.5."""
    network, ema = averaged()
    expected = network.one.weight.detach().double()
    for step in range(12):
        with torch.no_grad():
            network.one.weight.add_(torch.randn(3, 3))
            dict(network.named_buffers())["norm.running_mean"].add_(1)
        ema.update(step)
        stays = min(0.5, (1 + step) / (10 + step))
        expected = stays * expected + (1 - stays) * network.one.weight.detach().double()
    found = dict(ema.saved())
    torch.testing.assert_close(found["ema.tied.one.weight"].double(), expected)
    assert 10 < found["ema.tied.norm.running_mean"][0] < 12
    assert "ema.tied.norm.num_batches_tracked" not in found
    assert found["ema.tied.two.weight"] is found["ema.tied.one.weight"]
    assert [tuple(buffer.shape) for buffer in ema.buffers] == [(3,), (3,)]


def test_an_average_follows_a_buffer_that_its_network_replaces() -> None:
    """A forward may contain `self.mean = 0.9 * self.mean + 0.1 * x.mean(0)`."""
    network, ema = averaged()
    network.norm.running_mean = torch.ones(3)
    ema.update(0)
    expected = torch.full((3,), 0.9)
    torch.testing.assert_close(dict(ema.saved())["ema.tied.norm.running_mean"], expected)
    network.norm.running_mean = torch.full((3,), 2.0)
    ema.swap()
    torch.testing.assert_close(network.norm.running_mean, expected)
    ema.swap()
    assert network.norm.running_mean.tolist() == [2, 2, 2]


def test_units_without_weights_have_no_averages() -> None:
    """A chunk of such units also begins and updates its averages."""
    ema = Ema([(Unit("flat", nn.Flatten), nn.Flatten())], 0.5)
    ema.begin()
    ema.update(0)
    assert not list(ema.saved())


def test_units_compute_with_averages_between_two_swaps() -> None:
    network, ema = averaged()
    parameters = list(network.parameters())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        network.one.weight.zero_()
    ema.swap()
    assert_same(network.state_dict(), before)
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    ema.swap()
    assert not network.one.weight.any()
    ema.begin()
    ema.swap()
    assert not network.two.weight.any()


@pytest.mark.parametrize(
    "model", [[*RESNET, *SGD], pytest.param(VIT, marks=pytest.mark.slow)], ids=["resnet", "vit"]
)
def test_averaging_does_not_change_training(tmp_path: Path, model: list[str]) -> None:
    plain = run_inside(tmp_path, *DATA, FEW_STEPS, *model)
    with_ema = run_inside(tmp_path, *COURSE, *model)
    others = {n: t for n, t in with_ema.tensors.items() if not n.startswith(EMA)}
    assert_same(others, plain.tensors)
    assert with_ema.test == plain.test
    assert not plain.test_ema
    assert with_ema.test_ema != with_ema.test


def assert_same_averages(one: Outcome, other: Outcome) -> None:
    assert_same(one.tensors, other.tensors)
    assert any(name.startswith(EMA) for name in one.tensors)
    assert one.test_ema == other.test_ema
    # Auxiliary networks have no averages, because only the model's own head is evaluated with them.
    assert {module for _, module in one.test_ema} == {len(one.job.layout.modules) - 1}


@pytest.mark.parametrize(
    "model", [[*RESNET, *SGD], pytest.param(VIT, marks=pytest.mark.slow)], ids=["resnet", "vit"]
)
def test_averages_are_equal_under_ll_and_ppll(tmp_path: Path, model: list[str]) -> None:
    case = [*COURSE, *model, "local=dgl", "local.modules=4"]
    sequential = run_inside(tmp_path, *case, "schedule=ll")
    for gpus in (2, 3):
        found = run_inside(tmp_path, *case, "schedule=ppll", f"gpus={gpus}")
        assert_same_averages(found, sequential)


@pytest.mark.slow
def test_averages_are_equal_under_schedules_of_back_propagation(tmp_path: Path) -> None:
    case = [*COURSE, *RESNET, *SGD, "schedule.microbatches=2"]
    accumulating = run_inside(tmp_path, *case, "schedule=bp")
    for schedule in ("interleaved", "zb_h1"):
        found = run_inside(tmp_path, *case, f"schedule={schedule}", "gpus=2")
        assert_same_averages(found, accumulating)


def test_averages_are_swapped_in_once_per_evaluated_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averages are swapped out before a checkpoint, so that they are not saved as the weights."""
    swaps: list[Ema] = []
    swap = Ema.swap

    def counted(ema: Ema) -> None:
        swaps.append(ema)
        swap(ema)

    monkeypatch.setattr(Ema, "swap", counted)
    found = run_inside(tmp_path, *COURSE, "data.test_samples=30", "schedule=bp", *VIT)
    assert found.job.course.evaluation_size < 30
    assert len(swaps) == 2 * len(found.test_ema)


def test_replicas_have_the_same_averages(tmp_path: Path) -> None:
    """Averages are equal at the end of a run too.

    The replicas' BatchNorms see different samples.
    """
    found = run_inside(tmp_path, *COURSE, *RESNET, *SGD, "schedule=bp", "gpus=2", "replicas=2")
    assert found.job.replicas == 2
    assert len(found.test_ema) == len(found.test)


def test_averages_begin_with_the_weights_of_a_file(tmp_path: Path) -> None:
    """After one step, the average is made of the file's weights and the new weights."""
    given = tiny_model()
    file = saved(tmp_path, given)
    model = ["data=digits", "model.dim=16", "model.depth=2", "model.heads=2"]
    course = ["schedule=bp", "max_steps=1", "optim.ema=0.9", f"weights={file}"]
    found = run_inside(tmp_path, *model, *course).tensors
    for name, weights in given.items():
        if f"{EMA}{name}" in found:
            expected = torch.lerp(weights, found[f"model.{name}"], 1 - 0.1)
            torch.testing.assert_close(found[f"{EMA}{name}"], expected)
