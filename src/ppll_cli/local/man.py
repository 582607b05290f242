"""Momentum auxiliary networks (MAN, and MAN++: arXiv 2507.16279).

Legend: B batch, T tokens, D width, C channels, H height, W width of a map.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.copies import copy_unit
from ppll_cli.local.detection_head import DetectionHead, with_detection_head
from ppll_cli.local.dgl import AdaptivePool, dgl_network
from ppll_cli.local.infopro import InfoPro
from ppll_cli.local.method import Criterion, LocalMethod, Site, Watch, check_lag
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.task import only_for

Loss = Literal["infopro", "dgl", "ce"]


class MAN(LocalMethod):
    """Each module is trained through a copy of the next unit and that unit's moving average.

    Two networks of the form of the unit behind the module, both with fresh weights, read the
    module's features: LB is trained, EMA is not, and the local loss reads y = LB(x) + EMA(x). The
    parameters of EMA follow those of the next unit itself, EMA <- m EMA + (1 - m) next. Gradients
    pass through EMA to the module. Buffers are not averaged: BatchNorm of both copies takes the
    statistics of the batch in training, and its own running ones in evaluation.

    All this is as in the authors' code, which trains one module after the other, takes the average
    behind each and steps the optimizer once after all of them. So the forward of batch b sees an
    average that ends with the weights after the step of batch b - 2: a lag of 2. Here the average
    is taken right before the forward, and other lags are ours. So is what follows: where the next
    unit is the model's head, the module is trained by the local loss alone.

    Args:
        loss: What reads y. `infopro` is InfoPro's loss, with the classifier and decoder of
            `local=infopro`. `dgl` is cross-entropy through the network that the authors of MAN++
            give that name: pool to 8x8, three 1x1 convolutions with 128 channels, BatchNorm and
            ReLU, pool to one pixel, a perceptron with three hidden layers of 512, BatchNorm and
            ReLU. `ce` is cross-entropy through, for tokens, a second block that is only trained,
            and a copy of the model's head (as published for ViTs: LayerNorm, class token, Linear),
            or through the smallest head where features have another shape than the head reads
            (ours). null: `ce` for tokens, `infopro` for anything else. All are for classification:
            a detector's loss is the task's own.
        lag: How many batches old the weights of the next unit are, 1 or more.
        momentum: m.
        weights: Of InfoPro's reconstruction and classification at the first auxiliary network, then
            at the last; null: what `infopro_weights` says.
        detection_head: Of a detector, the levels on which a module is trained. `level`, the
            default, is the one of MAN++'s authors: the levels of y's stride. `pyramid` is a copy
            of the model's head over y alone (ours).
    """

    name: ClassVar[str] = "man"
    scaled: ClassVar[bool] = False

    def __init__(
        self,
        *,
        loss: Loss | None = None,
        lag: int = 2,
        momentum: float = 0.995,
        weights: list[float] | None = None,
        detection_head: DetectionHead | None = None,
    ) -> None:
        if loss is not None and loss not in get_args(Loss):
            raise ConfigError("local.loss", loss, "is unknown", "possible: infopro, dgl, ce, null")
        check_lag(lag)
        if not 0 <= momentum <= 1:
            raise ConfigError("local.momentum", momentum, "is out of range", "give 0 <= m <= 1")
        InfoPro(weights=weights)  # refuses weights that are none
        self.loss, self.lag, self.momentum, self.weights = loss, lag, momentum, weights
        self.detection_head = detection_head

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        site = with_detection_head(site, self.detection_head)
        following = site.stop
        if following == len(site.units) - 1:
            return self._base(site, site)
        copies = [copy_unit(site, following, site.spec.shape, self.name) for _ in range(2)]
        mixture = Mixture(*copies, momentum=self.momentum, scaled=self.scaled)
        features = list(site.features)
        features[following - 1] = site.features[following]  # there y stands for the features
        base = self._base(replace(site, features=features), site)
        return MomentumCriterion(mixture, base, Watch(following, self.lag))

    def infopro_weights(self, site: Site) -> list[float] | None:
        """InfoPro's weights where none are given: its own for the number of modules (ours)."""
        return None

    def _base(self, there: Site, site: Site) -> Criterion:
        """The loss that reads y.

        Args:
            there: Where y stands for the module's features.
            site: The module.
        """
        if not isinstance(there.task, Classification):
            return self._detector(there)
        tokens = len(there.spec.shape) == 2
        loss = self.loss or ("ce" if tokens else "infopro")
        if loss == "infopro":
            weights = self.weights or self.infopro_weights(site)
            return InfoPro(weights=weights).criterion(there)
        if loss == "dgl":
            pools = AdaptivePool(size=8), AdaptivePool(size=1)
            network = dgl_network(there, pools, channels=128, hidden=512)
        else:
            network = self._head(there, site, tokens)
        return Criterion(network, (there.feature,), there.task)

    def _detector(self, there: Site) -> Criterion:
        """The loss of a detector, whose head reads y."""
        from ppll_cli.tasks.detection import Detection  # torchvision's detectors

        data = "with class labels or boxes"
        only_for(Detection, there.task, "local", self.name, "classification and detection", data)
        if self.loss is not None:
            problem = "is for classification: a detector has the loss of its task"
            raise ConfigError("local.loss", self.loss, problem, "leave it out")
        if self.detection_head == "pyramid":
            network = copy_unit(there, len(there.units) - 1, there.spec.shape, self.name)
        else:
            there = with_detection_head(there, "level")
            network = there.task.smallest_head(there.spec.shape)
        return Criterion(network, (there.feature,), there.task)

    def _head(self, there: Site, site: Site, tokens: bool) -> nn.Module:
        """What makes a prediction of y for `ce`."""
        head, shape = len(site.units) - 1, there.spec.shape
        if shape != site.features[head - 1].shape:
            return site.task.smallest_head(shape)
        copied = copy_unit(site, head, shape, self.name)
        if not tokens or site.stop == head:
            return copied
        return nn.Sequential(copy_unit(site, site.stop, shape, self.name), copied)


class MANPlus(MAN):
    """MAN with a scale that each module learns: MAN++.

    y = s LB(x) + (2 - s) EMA(x), where s starts at 1. Everything else is as in `MAN`, but for
    InfoPro's weights.
    """

    name = "manpp"
    scaled = True

    def infopro_weights(self, site: Site) -> list[float] | None:
        """The weights of the authors' code: (5, 0.5) times 1 - r, where r = stage / (K - 2).

        K is the number of modules. The stage is that of the backbone: how often the shape of
        features has changed until the module's end. With few modules r would reach 1, and nothing
        would train a module; so it is divided by the number of stages at the least (ours).
        """
        shapes = [spec.shape for spec in site.features[:-1]]
        changes = [one != other for one, other in pairwise(shapes)]
        stage, stages = sum(changes[: site.stop - 1]), 1 + sum(changes)
        left = 1 - stage / max(len(site.modules) - 2, stages)
        return [5 * left, 0.5 * left] * 2


class Mixture(nn.Module):
    """The sum of what a trained and an averaged network make of the same features.

    Args:
        learned: The network that is trained.
        average: The network whose parameters are averages.
        momentum: How much of the average stays where other weights come to it.
        scaled: Whether the trained network counts s times and the other 2 - s times, s learned.
    """

    def __init__(
        self, learned: nn.Module, average: nn.Module, *, momentum: float, scaled: bool
    ) -> None:
        super().__init__()
        self.learned, self.average = learned, average.requires_grad_(False)
        self.momentum = momentum
        self.scale = nn.Parameter(torch.ones(())) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """The module's features to y, which has the shape of what the next unit makes."""
        learned, average = self.learned(x), self.average(x)
        if self.scale is None:
            mixed: Tensor = learned + average
        else:
            mixed = self.scale * learned + (2 - self.scale) * average
        return mixed

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Let the averages move towards these weights; to be called outside of the gradient."""
        parameters = dict(self.average.named_parameters())
        averages: list[Tensor] = [*parameters.values()]
        torch._foreach_mul_(averages, self.momentum)
        torch._foreach_add_(averages, [weights[n] for n in parameters], alpha=1 - self.momentum)


class MomentumCriterion(Criterion):
    """A local loss that reads a `Mixture` in place of the module's features.

    Args:
        mixture: What makes y of the features.
        base: The loss.
        watch: The next unit, which the averages follow.
    """

    def __init__(self, mixture: Mixture, base: Criterion, watch: Watch) -> None:
        super().__init__(mixture, base.features, base.task)
        self.base = base
        self.reads, self.watches = base.reads, watch

    @property
    def mixture(self) -> Mixture:
        """What makes y of the features."""
        assert isinstance(self.head, Mixture)
        return self.head

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch, a scalar, and logits [B, classes]."""
        (feature,) = self.features
        found: tuple[Tensor, Tensor] = self.base({**values, feature: self.mixture(values[feature])})
        return found

    def see(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Average the weights of the next unit, unless they stand in for some that never were."""
        if steps >= 0:
            self.mixture.take(weights)
