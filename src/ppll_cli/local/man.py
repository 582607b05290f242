"""MAN and MAN++: auxiliary networks with momentum (MAN++: arXiv 2507.16279).

Legend: B batch, T tokens, D width, C channels, H height, W width of a map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Share
from ppll_cli.local.copies import copy_unit
from ppll_cli.local.detection_head import DetectionHead, with_detection_head
from ppll_cli.local.dgl import AdaptivePool, dgl_network
from ppll_cli.local.infopro import InfoPro, Weights
from ppll_cli.local.method import Criterion, Lag, LocalMethod, Site, Watch
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.task import only_for

Loss = Literal["infopro", "dgl", "ce"]


@dataclass(kw_only=True, eq=False)
class MAN(LocalMethod):
    """MAN: trains each module through two copies of the next unit, the unit after the module.

    The copies are called LB and EMA, and have initial weights of their own. Both read the module's
    output x. The local loss reads y = LB(x) + EMA(x), and its gradient reaches the module through
    both copies. LB is trained. EMA is not: before each training batch, each of its parameters
    becomes m * parameter + (1 - m) * parameter of the next unit. In the first `lag` - 1 batches,
    EMA is not updated.

    Buffers are not averaged: BatchNorm in both copies uses the batch's statistics in training, and
    its own running statistics in evaluation. If the next unit is the model's head, the local loss
    reads x (our choice).

    Attributes:
        loss: The loss that reads y: `infopro`, `dgl` or `ce`. None means `ce` for tokens and
            `infopro` for other features. A detector needs None, and has its task's loss.

            - `infopro`: InfoPro's loss, with the classifier and decoder of `local=infopro`.
            - `dgl`: Cross-entropy, through the network that the authors of MAN++ call DGL: pool to
              8x8, three 1x1 convolutions with 128 channels, pool to one pixel, and a perceptron
              with three hidden layers of width 512. BatchNorm and ReLU follow all these layers.
            - `ce`, for tokens: Cross-entropy, through a third copy of the next unit, which is
              trained, and a copy of the model's head (as published for ViTs: LayerNorm, class
              token, Linear).
            - `ce`, for other features: Cross-entropy, through a copy of the model's head. If y does
              not have the shape that this head reads, the task's smallest head is used (our
              choice).
        lag: Age, in batches, of the next unit's weights that update EMA. The authors' code has a
            lag of 2; other lags are our extension.
        momentum: m, the weight of the old value in an update of EMA.
        weights: Weights l1 and l2 of InfoPro's loss at the first auxiliary network, then at the
            last one. None means those that `infopro_weights` returns.
        detection_head: See `DetectionHead`. None means `level`, as in the code of MAN++'s authors.
            With `pyramid`, a copy of the model's head reads y (our choice).
    """

    name: ClassVar[str] = "man"
    scaled: ClassVar[bool] = False

    loss: Loss | None = None
    # The authors' code updates EMA during batch b - 1, before the optimizer step of that batch. So
    # in batch b, EMA was last updated with weights from the optimizer step of batch b - 2.
    lag: Lag = 2
    momentum: Share = 0.995
    weights: Weights | None = None
    detection_head: DetectionHead | None = None

    def criterion(self, site: Site) -> Criterion:  # noqa: D102
        site = with_detection_head(site, self.detection_head)
        following = site.stop
        if following == len(site.units) - 1:
            return self._base(site, site)
        copies = [copy_unit(site, following, site.spec.shape, self.name) for _ in range(2)]
        mixture = Mixture(*copies, momentum=self.momentum, scaled=self.scaled)
        features = list(site.features)
        features[following - 1] = site.features[following]  # the shape of y, which the loss reads
        base = self._base(replace(site, features=features), site)
        # A unit without parameters, such as an activation, has no weights to average.
        watch = Watch(following, self.lag) if [*mixture.average.parameters()] else None
        return MomentumCriterion(mixture, base, watch)

    def infopro_weights(self, site: Site) -> list[float] | None:
        """Return the weights of InfoPro's loss that replace the value None of the option `weights`.

        MAN returns None: `InfoPro` then uses its own default weights (our choice).
        """
        return None

    # `site` describes the module. `y_site` is a copy of it, with y as the module's output.
    def _base(self, y_site: Site, site: Site) -> Criterion:
        if not isinstance(y_site.task, Classification):
            return self._detector(y_site)
        tokens = len(y_site.spec.shape) == 2
        loss = self.loss or ("ce" if tokens else "infopro")
        if loss != "infopro" and self.weights is not None:
            problem = f"is for the loss of InfoPro, and the loss here is {loss}"
            remedy = "leave it out, or use local.loss=infopro"
            raise ConfigError("local.weights", self.weights, problem, remedy)
        if loss == "infopro":
            weights = self.weights or self.infopro_weights(site)
            return InfoPro(weights=weights).criterion(y_site, key="local.loss")
        if loss == "dgl":
            pools = AdaptivePool(size=8), AdaptivePool(size=1)
            network = dgl_network(y_site, pools, channels=128, hidden=512)
        else:
            network = self._head(y_site, site, tokens)
        return Criterion(network, (y_site.feature,), y_site.task)

    def _detector(self, y_site: Site) -> Criterion:
        from ppll_cli.tasks.detection import Detection  # slow: imports torchvision

        data = "with class labels or boxes"
        only_for(Detection, y_site.task, "local", self.name, "classification and detection", data)
        for key, value in (("local.loss", self.loss), ("local.weights", self.weights)):
            if value is not None:
                problem = "is for classification: a detector has the loss of its task"
                raise ConfigError(key, value, problem, "leave it out")
        if self.detection_head == "pyramid":
            network = copy_unit(y_site, len(y_site.units) - 1, y_site.spec.shape, self.name)
        else:
            if self.detection_head is None:
                y_site = with_detection_head(y_site, "level")
            network = y_site.task.smallest_head(y_site.spec.shape)
        return Criterion(network, (y_site.feature,), y_site.task)

    def _head(self, y_site: Site, site: Site, tokens: bool) -> nn.Module:
        head, shape = len(site.units) - 1, y_site.spec.shape
        if shape != site.features[head - 1].shape:
            return site.task.smallest_head(shape)
        copied = copy_unit(site, head, shape, self.name)
        if not tokens or site.stop == head:
            return copied
        return nn.Sequential(copy_unit(site, site.stop, shape, self.name), copied)


class MANPlus(MAN):
    """MAN++: as MAN, but each module learns how much each of its two copies counts.

    The local loss reads y = s * LB(x) + (2 - s) * EMA(x), where s is learned and starts at 1. The
    default weights of InfoPro's loss differ too (see `infopro_weights`).
    """

    name = "manpp"
    scaled = True

    def infopro_weights(self, site: Site) -> list[float] | None:
        """Return the default weights of InfoPro's loss: l1 = 5 (1 - r) and l2 = 0.5 (1 - r).

        r = i / max(K - 2, S), where i is the number of the resolution stage, from 0, in which the
        module ends. K is the number of modules, and S the number of resolution stages. The
        authors' code divides by K - 2; the maximum keeps l1 and l2 above 0 (our choice).

        The result is [l1, l2, l1, l2].
        """
        shapes = [spec.shape for spec in site.features[:-1]]
        changes = [one != other for one, other in pairwise(shapes)]
        stage, stages = sum(changes[: site.stop - 1]), 1 + sum(changes)
        left = 1 - stage / max(len(site.modules) - 2, stages)
        # InfoPro interpolates between the first two and the last two of these four weights. Here
        # the two pairs are equal, so it uses them unchanged.
        return [5 * left, 0.5 * left] * 2


class Mixture(nn.Module):
    """Adds the outputs of two networks for the same features: a trained and an averaged network.

    Args:
        learned: The trained network.
        average: The averaged network. Its parameters change only in `update`.
        momentum: Weight of the old value of an averaged parameter in an update.
        scaled: Whether to learn a scale s, which starts at 1. The output of the trained network is
            multiplied by s, and the output of the averaged network by 2 - s.
    """

    def __init__(
        self, learned: nn.Module, average: nn.Module, *, momentum: float, scaled: bool
    ) -> None:
        super().__init__()
        self.learned, self.average = learned, average.requires_grad_(False)
        self.momentum = momentum
        self.scale = nn.Parameter(torch.ones(())) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both networks' outputs, each multiplied by its scale if `scaled`."""
        learned: Tensor = self.learned(x)
        average: Tensor = self.average(x)
        if self.scale is None:
            return learned + average
        return self.scale * learned + (2 - self.scale) * average

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Move the averaged parameters towards `weights`. Call this under `no_grad`.

        `weights` has the current parameters of the unit that is averaged, by name.
        """
        parameters = dict(self.average.named_parameters())
        averages: list[Tensor] = [*parameters.values()]
        torch._foreach_mul_(averages, self.momentum)
        torch._foreach_add_(averages, [weights[n] for n in parameters], alpha=1 - self.momentum)


class MomentumCriterion(Criterion):
    """The local loss `base`, which reads the output of a `Mixture` instead of the features.

    `watch` names the unit whose weights the mixture averages; None if this unit has no weights.
    """

    def __init__(self, mixture: Mixture, base: Criterion, watch: Watch | None) -> None:
        super().__init__(mixture, base.features, base.task)
        self.base = base
        self.reads, self.watches = base.reads, watch

    @property
    def mixture(self) -> Mixture:
        """The network that makes y, which the local loss reads, from the module's output."""
        assert isinstance(self.head, Mixture)
        return self.head

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the batch, a scalar, and the prediction."""
        (feature,) = self.features
        found: tuple[Tensor, Tensor] = self.base({**values, feature: self.mixture(values[feature])})
        return found

    def see(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Update the averaged network with the next unit's weights (see `Criterion.see`)."""
        if steps >= 0:  # below 0 in the first lag - 1 batches
            self.mixture.update(weights)
