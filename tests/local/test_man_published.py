"""Momentum auxiliary networks train as the authors' code does."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.local.man import MAN, MANPlus, MomentumCriterion
from ppll_cli.local.method import Criterion, Site
from ppll_cli.models.unit import IMAGE, Model
from ppll_cli.tasks.classification import LABEL, Classification
from tests.local.conftest import CLASSES
from tests.local.watched_units import RESNET, VIT, site_of, weights_of

STEPS, RATE, MOMENTUM = 3, 0.1, 0.9


@dataclass(frozen=True)
class Exact(Classification):
    """Classification with a loss that is not rounded to float32."""

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(prediction, values[LABEL])


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


CASES: dict[str, tuple[Model, str | None, Read]] = {
    "ce": (RESNET, "ce", through_the_head),
    "dgl": (RESNET, "dgl", through_the_head),
    "infopro": (RESNET, "infopro", information),
    "vit": (VIT, None, through_a_block),
}
ALWAYS = [(MAN, "infopro"), (MANPlus, "infopro"), (MAN, "ce"), (MANPlus, "vit")]
"""What is always tested: the loss that the methods weight in two ways, and the other losses once.

A DGL network is read as that of `ce`.
"""


@pytest.mark.parametrize(
    ("method", "model", "loss", "read"),
    [
        pytest.param(
            *(method, *case),
            id=f"{name}-{method.__name__}",
            marks=[pytest.mark.slow] * ((method, name) not in ALWAYS),
        )
        for method in (MAN, MANPlus)
        for name, case in CASES.items()
    ],
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
