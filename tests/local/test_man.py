"""Momentum auxiliary networks: their computations, and the order of averages and steps."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.infopro import Decoder, InfoProCriterion
from ppll_cli.local.man import MAN, MANPlus, MomentumCriterion
from ppll_cli.local.method import Watch
from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.unit import IMAGE, ImageSpec, Model, Unit
from ppll_cli.tasks.classification import LABEL
from ppll_cli.tasks.task import Task
from tests.local.conftest import CLASSES, TokenSpec, assert_trained, batch_at
from tests.local.watched_units import RESNET, VIT, site_of, weights_of
from tests.other_task import OtherTask
from tests.worker.inside import run_inside


def test_the_average_has_fresh_weights_and_is_not_trained() -> None:
    """The two networks start with different weights, and not with those of the unit."""
    site = site_of(RESNET, [1, 2, 3])
    criterion = MANPlus().criterion(site)
    assert isinstance(criterion, MomentumCriterion)
    mixture = criterion.mixture
    learned, average = (weights_of(n)["conv1.weight"] for n in (mixture.learned, mixture.average))
    assert not torch.equal(learned, average)
    assert not any(p.requires_grad for p in mixture.average.parameters())
    assert mixture.scale is not None
    assert mixture.scale.item() == 1.0
    assert criterion.watches == Watch(1, 2)
    before = {name: buffer.clone() for name, buffer in mixture.average.named_buffers()}
    weights = weights_of(site.units[1].build())
    criterion.see(weights, -1)  # there is no such version, so the average stays
    assert torch.equal(weights_of(mixture.average)["conv1.weight"], average)
    criterion.see(weights, 0)
    expected = 0.995 * average + 0.005 * weights["conv1.weight"]
    torch.testing.assert_close(weights_of(mixture.average)["conv1.weight"], expected)
    assert all(torch.equal(b, before[n]) for n, b in mixture.average.named_buffers())


@pytest.mark.parametrize(
    ("method", "loss"),
    [
        *((MANPlus, loss) for loss in ("infopro", "dgl", None)),
        (MAN, None),
        pytest.param(MANPlus, "ce", marks=pytest.mark.slow),
        *(pytest.param(MAN, loss, marks=pytest.mark.slow) for loss in ("infopro", "dgl", "ce")),
    ],
)
@pytest.mark.parametrize(("model", "module"), [(RESNET, 0), (RESNET, 1), (VIT, 1)])
def test_gradients_reach_the_module_and_all_that_is_trained(
    method: type[MAN], loss: Any, model: Model, module: int
) -> None:
    site = site_of(model, [1, 2, 3]).at(module)
    criterion = method(loss=loss).criterion(site)
    for layer in criterion.modules():  # at first, the head of a ViT is zero
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight)
    frozen = [p for p in criterion.parameters() if not p.requires_grad]
    assert frozen
    values = batch_at(site)
    loss_, prediction = criterion(values)
    assert prediction.shape == (len(values[LABEL]), CLASSES)
    loss_.backward()
    for name, parameter in criterion.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    gradient = values[site.feature].grad
    assert gradient is not None
    assert gradient.any()
    assert {*criterion.reads} == (
        {"x", LABEL, IMAGE} if loss_reads_image(loss, model) else {"x", LABEL}
    )


def loss_reads_image(loss: str | None, model: Model) -> bool:
    """InfoPro's decoder reads the image. InfoPro's loss is the default, except for tokens."""
    return loss == "infopro" or (loss is None and model is RESNET)


def test_the_network_of_manpp_over_dgl() -> None:
    """It pools to 8x8, convolves with 128 channels, pools to 1x1, and has hidden layers of 512."""
    criterion: Any = MANPlus(loss="dgl").criterion(site_of(RESNET, [1, 2, 3]).at(1))
    layers = list(criterion.base.head)
    convolutions = [n for n in layers if isinstance(n, nn.Conv2d)]
    assert [(n.in_channels, n.out_channels, n.kernel_size) for n in convolutions] == [
        (32, 128, (1, 1)),  # the second group returns 32 channels, and this module ends in it
        (128, 128, (1, 1)),
        (128, 128, (1, 1)),
    ]
    linears = [
        (n.in_features, n.out_features)
        for n in criterion.base.modules()
        if isinstance(n, nn.Linear)
    ]
    assert linears == [(128, 512), (512, 512), (512, 512), (512, CLASSES)]


@pytest.mark.parametrize(
    ("depth", "starts", "module", "expected"),
    [
        # the stem, in front of the first group
        pytest.param(*(32, range(1, 16), 0, 1.0), marks=pytest.mark.slow),
        # the last unit of the first group
        pytest.param(*(32, range(1, 16), 5, 1.0), marks=pytest.mark.slow),
        (32, range(1, 16), 6, 1 - 1 / 14),
        pytest.param(*(32, range(1, 16), 14, 1 - 2 / 14), marks=pytest.mark.slow),
        (8, [1, 3], 1, 1 - 1 / 3),  # division by K - 2 = 1 would give 0
    ],
)
def test_manpps_loss_weights_fall_with_the_resolution_stage(
    depth: int, starts: Sequence[int], module: int, expected: float
) -> None:
    site = site_of(CifarResNet(depth=depth), starts).at(module)
    criterion: Any = MANPlus().criterion(site)
    assert isinstance(criterion.base, InfoProCriterion)
    assert criterion.base.weights == pytest.approx((5 * expected, 0.5 * expected))
    assert isinstance(criterion.base.decoder, Decoder)


def test_given_weights_change_from_module_to_module() -> None:
    site = site_of(RESNET, [1, 2, 3])
    for method in (MAN, MANPlus):
        made: Any = [method(weights=[4, 1, 2, 3]).criterion(site.at(m)) for m in range(3)]
        assert [each.base.weights for each in made] == [(4, 1), (3, 2), (2, 3)]


def test_a_module_before_the_head_has_only_the_local_loss() -> None:
    """The last module has only the head. So the module before it has only its local loss."""
    for model, loss in ((RESNET, "infopro"), (RESNET, "ce"), (VIT, None)):
        site = site_of(model, [1, 4]).at(1)
        criterion = MANPlus(loss=loss).criterion(site)  # type: ignore[arg-type]
        assert criterion.watches is None
        torch.manual_seed(3)
        for layer in criterion.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.any():
                nn.init.normal_(layer.weight)
        assert_trained(criterion, batch_at(site))


class Activated(CifarResNet):
    """A ResNet with a unit without parameters after its stem."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        units = super().units(image, task)
        return [units[0], Unit("relu", nn.ReLU), *units[1:]]


def test_a_unit_without_parameters_is_not_watched() -> None:
    """Its weights were once averaged, which torch refuses for an empty list."""
    site = site_of(Activated(depth=8), [1, 3])
    criterion = MAN(loss="ce").criterion(site)
    assert criterion.watches is None
    for layer in criterion.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight)
    assert_trained(criterion, batch_at(site))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"loss": "mse"}, "local.loss=mse: must be 'infopro', 'dgl' or 'ce', or null"),
        ({"lag": 0}, "local.lag=0: must be greater than or equal to 1"),
        ({"momentum": 1.5}, "local.momentum=1.5: must be less than or equal to 1"),
        ({"momentum": float("nan")}, "local.momentum=nan: must be a finite number"),
        ({"weights": [1.0]}, "local.weights=[1.0]: must be l1 and l2 of the first"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], problem: str) -> None:
    for method in (MAN, MANPlus):
        with pytest.raises(ConfigError) as caught:
            method(**options)
        assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("loss", ["dgl", "ce"])
def test_loss_weights_that_the_loss_would_ignore_are_refused(loss: Any) -> None:
    with pytest.raises(ConfigError, match=f"local.weights=.* the loss here is {loss}; leave it"):
        MAN(loss=loss, weights=[1, 1, 1, 1]).criterion(site_of(RESNET, [1]))


def test_other_tasks_are_refused() -> None:
    site = replace(site_of(RESNET, [1]), task=OtherTask())
    for method, name in ((MAN, "man"), (MANPlus, "manpp")):
        with pytest.raises(ConfigError, match=f"^local={name}: "):
            method().criterion(site)


def test_infopros_loss_refuses_data_without_images() -> None:
    """The message named `local=infopro`, which the user had not given."""
    site = replace(site_of(RESNET, [1]), input_spec=TokenSpec())
    with pytest.raises(ConfigError, match=r"^local\.loss=infopro: reconstructs images, but"):
        MAN(loss="infopro").criterion(site)
    MAN(loss="infopro", weights=[0, 1, 0, 1]).criterion(site)  # what the message recommends


@pytest.mark.slow
def test_in_a_run_the_average_has_seen_each_version_once(tmp_path: Path) -> None:
    """After 4 steps, the average has used the initial weights, and those after 1 and 2 steps."""
    case = ["local=manpp", "schedule=ppll", "gpus=2", "model=resnet32", "model.depth=8"]
    case += ["local.cuts=[layer1.0,layer3.0]", "data=synthetic", "data.size=8", "batch_size=8"]
    case += ["data.train_samples=64", "data.test_samples=4", "optim=sgd", "optim.lr=0.05"]
    ends = [run_inside(tmp_path / str(n), *case, f"max_steps={n}").tensors for n in range(1, 5)]
    start = "auxiliary.0.head.average."
    average = {n: t.clone() for n, t in ends[0].items() if n.startswith(start) and "conv" in n}
    assert len(average) == 2
    initial = run_inside(tmp_path / "0", *case, "optim.lr=1e-30", "max_steps=1").tensors
    # with lag 2, the last forward uses the weights after two steps
    for seen in [initial, *ends[:2]]:
        for name, tensor in average.items():
            weight = seen[f"model.layer1.0.{name.removeprefix(start)}"]
            average[name] = 0.995 * tensor + 0.005 * weight
    for name, tensor in average.items():
        torch.testing.assert_close(ends[3][name], tensor)
        assert not torch.allclose(ends[2][name], tensor, rtol=1e-6)
