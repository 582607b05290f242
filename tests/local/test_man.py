"""Momentum auxiliary networks: their computations, and the order of averages and steps."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.infopro import Decoder, InfoProCriterion
from ppll_cli.local.man import MAN, MANPlus, MomentumCriterion
from ppll_cli.local.method import Criterion, Site, Watch
from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.trace import trace
from ppll_cli.models.unit import IMAGE, ImageSpec, Model
from ppll_cli.models.vit import ViT
from ppll_cli.tasks.classification import LABEL, Classification
from tests.local.conftest import CLASSES, assert_trained, batch_at
from tests.other_task import OtherTask
from tests.worker.inside import run_inside

IMAGES = ImageSpec(3, 8, 8, (0.5,), (0.25,))
RESNET = CifarResNet(depth=8)  # stem, layer1.0, layer2.0, layer3.0, head
VIT = ViT(dim=8, depth=3, heads=2, patch=4)  # embed, three blocks, head
STEPS, RATE, MOMENTUM = 3, 0.1, 0.9


@dataclass(frozen=True)
class Exact(Classification):
    """Classification with a loss that is not rounded to float32."""

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(prediction, values[LABEL])


def site_of(model: Model, starts: Sequence[int], task: Any = None) -> Site:
    """Return the end of the first module. Modules 2 to k begin at the units `starts`."""
    task = task or Classification(CLASSES)
    units = list(model.units(IMAGES, task))
    batch = {IMAGE: ValueSpec((3, 8, 8), torch.float32), LABEL: ValueSpec((), torch.int64)}
    features = [traced.outputs[0] for traced in trace(units, batch)]
    edges = [0, *starts, len(units)]
    modules = tuple(range(a, b) for a, b in pairwise(edges))
    return Site(0, modules, units, features, IMAGES, task)


def batches(count: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [
        {IMAGE: torch.rand(6, 3, 8, 8).double(), LABEL: torch.randint(CLASSES, (6,))}
        for _ in range(count)
    ]


class Ours:
    """Modules that are trained one after the other. Each does its step at once, like a worker."""

    def __init__(self, method: MAN, site: Site) -> None:
        torch.manual_seed(0)
        self.units = [unit.build().double() for unit in site.units]
        self.modules = site.modules
        self.criteria = [
            method.criterion(site.at(m)).double() for m in range(len(site.modules) - 1)
        ]
        self.lag = method.lag

    def train(self, given: Sequence[Mapping[str, Tensor]]) -> None:
        optimizers = [
            optimizer([*units, *self.criteria[m : m + 1]])
            for m, units in enumerate(self._units_of_modules())
        ]
        self.versions = {unit: [weights_of(unit)] for unit in self.units}
        for step, batch in enumerate(given):
            x = batch[IMAGE]
            for module, units in enumerate(self._units_of_modules()):
                last = module == len(self.modules) - 1
                if not last:
                    self.show(module, step)
                x = nn.Sequential(*units)(x.detach())
                if last:
                    loss = F.cross_entropy(x, batch[LABEL])
                else:
                    loss, _ = self.criteria[module]({**batch, "x": x})
                torch.autograd.backward([loss])
                optimizers[module].step()
                optimizers[module].zero_grad()
            for unit, known in self.versions.items():
                known.append(weights_of(unit))

    def show(self, module: int, step: int) -> None:
        """Give a loss the version of the watched weights that it reads in the next batch."""
        watch, steps = self.criteria[module].watches, step - self.lag + 1
        assert watch is not None
        with torch.no_grad():
            shown = self.versions[self.units[watch.unit]][max(0, steps)]
            self.criteria[module].see(shown, steps)

    def _units_of_modules(self) -> list[list[nn.Module]]:
        return [[self.units[n] for n in module] for module in self.modules]


Read = Callable[[Criterion, Tensor, Mapping[str, Tensor]], Tensor]
"""Returns the local loss of a criterion's base, given y."""


def published(ours: Ours, scaled: bool, loss: Read, given: Sequence[Mapping[str, Tensor]]) -> None:
    """Train in the order of the authors' code.

    Each module computes forward, its loss on y, backward, and the average. Its output is detached.
    After all modules there is one step of a single optimizer.
    """
    step = optimizer([*ours.units, *ours.criteria])
    for batch in given:
        x = batch[IMAGE]
        for units, criterion in zip(ours._units_of_modules(), ours.criteria, strict=False):
            for unit in units:
                x = unit(x)
            auxiliary: Any = criterion
            lb, ema = auxiliary.head.learned, auxiliary.head.average
            s = auxiliary.head.scale
            y = s * lb(x) + (2 - s) * ema(x) if scaled else lb(x) + ema(x)
            torch.autograd.backward([loss(criterion, y, batch)])
            x = x.detach()
            following = ours.units[auxiliary.watches.unit]
            for average, weight in zip(ema.parameters(), following.parameters(), strict=True):
                average.data = 0.995 * average.data + (1 - 0.995) * weight.data
        for unit in ours._units_of_modules()[-1]:
            x = unit(x)
        torch.autograd.backward([F.cross_entropy(x, batch[LABEL])])
        step.step()
        step.zero_grad()


def optimizer(networks: Sequence[nn.Module]) -> torch.optim.SGD:
    parameters = [p for network in networks for p in network.parameters()]
    return torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM, nesterov=True, weight_decay=1e-4)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def through_the_head(criterion: Criterion, y: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the cross-entropy of a DGL network, or of pooling and a Linear layer."""
    base: Any = criterion
    return F.cross_entropy(base.base.head(y), batch[LABEL])


def through_a_block(criterion: Criterion, y: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the cross-entropy after a second block, LayerNorm, class token and Linear layer."""
    base: Any = criterion
    block, head = base.base.head
    tokens = block(y)
    return F.cross_entropy(head.fc(head.ln(tokens)[:, 0]), batch[LABEL])


def information(criterion: Criterion, y: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return 5 times reconstruction plus 0.5 times classification; with a scale, times 1 - r."""
    base: Any = criterion
    stage = {"16": 0, "32": 1, "64": 2}[str(base.head.learned.conv1.in_channels)]
    # With four modules, r is the stage divided by three, the number of stages, and not by K - 2.
    left = 1 - stage / 3 if base.head.scale is not None else 1
    enlarged = F.interpolate(y, (8, 8), mode="bilinear", align_corners=True)
    painted = base.base.decoder.network(enlarged)
    pixels = batch[IMAGE] * 0.25 + 0.5
    reconstruction = F.binary_cross_entropy(painted.sigmoid(), pixels.clamp(0, 1))
    return left * (5 * reconstruction + 0.5 * F.cross_entropy(base.base.head(y), batch[LABEL]))


@pytest.mark.parametrize("method", [MAN, MANPlus])
@pytest.mark.parametrize(
    ("model", "loss", "read"),
    [
        (RESNET, "ce", through_the_head),
        (RESNET, "dgl", through_the_head),
        (RESNET, "infopro", information),
        (VIT, None, through_a_block),
    ],
    ids=["ce", "dgl", "infopro", "vit"],
)
def test_three_steps_are_those_of_the_published_algorithm(
    method: type[MAN], model: Model, loss: Any, read: Read
) -> None:
    """Both compute in float64, with four modules.

    A ResNet's last module has the last unit and the head.
    """
    weights = [5.0, 0.5, 5.0, 0.5] if method is MAN and loss == "infopro" else None
    ours = Ours(method(loss=loss, weights=weights), site_of(model, [1, 2, 3], Exact(CLASSES)))
    theirs = copy.deepcopy(ours)
    given = batches(STEPS)
    ours.train(given)
    published(theirs, method.scaled, read, given)
    # published code updates the average after a batch, our code before the next one
    for module in range(3):
        ours.show(module, STEPS)
    # InfoPro's decoder computes in float32, and so does its loss of pixels.
    rtol, atol = (1e-4, 1e-6) if loss == "infopro" else (1e-9, 1e-12)
    for mine, other in zip(
        [*ours.units, *ours.criteria], [*theirs.units, *theirs.criteria], strict=True
    ):
        for (name, tensor), expected in zip(
            mine.state_dict().items(), other.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(tensor, expected, rtol=rtol, atol=atol, msg=name)


def test_another_lag_trains_other_weights() -> None:
    site = site_of(RESNET, [1, 2, 3], Exact(CLASSES))
    found = [Ours(MANPlus(loss="ce", lag=lag), site) for lag in (1, 2)]
    for ours in found:
        ours.train(batches(STEPS))
    averages = [
        weights_of(criterion.mixture.average)["conv1.weight"]
        for ours in found
        if isinstance(criterion := ours.criteria[0], MomentumCriterion)
    ]
    assert not torch.equal(*averages)


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


@pytest.mark.parametrize("method", [MAN, MANPlus])
@pytest.mark.parametrize("loss", ["infopro", "dgl", "ce", None])
@pytest.mark.parametrize(("model", "module"), [(RESNET, 0), (RESNET, 1), (VIT, 1)])
def test_gradients_reach_the_module_and_all_that_is_trained(
    method: type[MAN], loss: Any, model: Model, module: int
) -> None:
    torch.manual_seed(0)
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
        (32, range(1, 16), 0, 1.0),  # the stem, in front of the first group
        (32, range(1, 16), 5, 1.0),  # the last unit of the first group
        (32, range(1, 16), 6, 1 - 1 / 14),
        (32, range(1, 16), 14, 1 - 2 / 14),
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


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"loss": "mse"}, "local.loss=mse: is unknown; possible: infopro, dgl, ce, null"),
        ({"lag": 0}, "local.lag=0: is not a valid number of batches; give 1 or more"),
        ({"momentum": 1.5}, "local.momentum=1.5: is out of range"),
        ({"momentum": float("nan")}, "local.momentum=nan: is out of range"),
        ({"weights": [1.0]}, "local.weights=[1.0]: has 1 numbers, not 4"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], problem: str) -> None:
    for method in (MAN, MANPlus):
        with pytest.raises(ConfigError) as caught:
            method(**options)
        assert str(caught.value).startswith(problem)


def test_other_tasks_are_refused() -> None:
    site = replace(site_of(RESNET, [1]), task=OtherTask())
    for method, name in ((MAN, "man"), (MANPlus, "manpp")):
        with pytest.raises(ConfigError, match=f"^local={name}: "):
            method().criterion(site)


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
