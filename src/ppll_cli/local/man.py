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
    """Trains each module through a copy of the next unit and a moving average of the next unit.

    The next unit is the unit after the module. LB and EMA are built like it, with initial weights
    of their own. Both read the module's features x, and the local loss reads y = LB(x) + EMA(x).
    LB is trained. EMA is not trained; its parameters follow the parameters of the next unit,
    EMA <- m EMA + (1 - m) next. Gradients pass through EMA to the module. Buffers are not averaged:
    BatchNorm in both copies uses the batch's statistics in training, and its own running statistics
    in evaluation.

    All this follows the authors' code. In each batch, this code trains the modules one after the
    other, updates the average after each module, and then makes one optimizer step. So in batch b
    the average was last updated in batch b - 1, with weights from the optimizer step of batch
    b - 2: a lag of 2. Here the average is updated directly before the forward pass. Other lags are
    our extension. If the next unit is the model's head, the local loss reads x (our choice).

    Attributes:
        loss: The loss that reads y, for classification only: a detector has its task's loss.
            `infopro` is InfoPro's loss, with the classifier and decoder of `local=infopro`. `dgl`
            is cross-entropy through the network that the authors of MAN++ call DGL: pool to 8x8,
            three 1x1 convolutions with 128 channels, BatchNorm and ReLU, pool to one pixel, and a
            perceptron with three hidden layers of width 512, BatchNorm and ReLU. `ce` is
            cross-entropy. For tokens, `ce` reads y through another trained block and a copy of the
            model's head (as published for ViTs: LayerNorm, class token, Linear). For other features
            it uses a copy of the model's head or, if the shape does not fit the head, the task's
            smallest head (our choice). None means `ce` for tokens and `infopro` otherwise.
        lag: Age, in batches, of the weights of the next unit with which the average is updated.
        momentum: m, the weight of the old average in an update.
        weights: InfoPro's l1 and l2 at the first auxiliary network, then at the last one; None for
            the weights that `infopro_weights` returns.
        detection_head: See `DetectionHead`; the local head reads y. None means `level`, as in the
            code of MAN++'s authors. With `pyramid`, the local head is a copy of the model's head
            (our choice).
    """

    name: ClassVar[str] = "man"
    scaled: ClassVar[bool] = False

    loss: Loss | None = None
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
        """Return the default `weights`; None means the defaults of `InfoPro` (our choice)."""
        return None

    def _base(self, y_site: Site, site: Site) -> Criterion:
        """Return the loss that reads y.

        `site` describes the module, whose output is x. `y_site` is a copy of `site` with y as the
        module's output.
        """
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
        """Return the network for `loss=ce`; `y_site` and `site` are as in `_base`."""
        head, shape = len(site.units) - 1, y_site.spec.shape
        if shape != site.features[head - 1].shape:
            return site.task.smallest_head(shape)
        copied = copy_unit(site, head, shape, self.name)
        if not tokens or site.stop == head:
            return copied
        return nn.Sequential(copy_unit(site, site.stop, shape, self.name), copied)


class MANPlus(MAN):
    """MAN++: MAN with a learned scale in each module.

    y = s LB(x) + (2 - s) EMA(x), where s is learned and starts at 1. The default weights of
    InfoPro's loss differ too (see `infopro_weights`).
    """

    name = "manpp"
    scaled = True

    def infopro_weights(self, site: Site) -> list[float] | None:
        """Return the default weights of InfoPro's loss: l1 = 5 (1 - r) and l2 = 0.5 (1 - r).

        r = i / max(K - 2, S), where K is the number of modules, and S the number of resolution
        stages. The module ends in resolution stage i, counted from 0. The authors' code divides by
        K - 2; the maximum keeps l1 and l2 above 0 (our choice).

        The result is [l1, l2, l1, l2]: `InfoPro` interpolates between the weights of the first and
        of the last auxiliary network, which are equal here.
        """
        shapes = [spec.shape for spec in site.features[:-1]]
        changes = [one != other for one, other in pairwise(shapes)]
        stage, stages = sum(changes[: site.stop - 1]), 1 + sum(changes)
        left = 1 - stage / max(len(site.modules) - 2, stages)
        return [5 * left, 0.5 * left] * 2


class Mixture(nn.Module):
    """Adds the outputs of two networks for the same features: a trained and an averaged network.

    An update sets average = m average + (1 - m) weights, where m is `momentum`. If `scaled`, the
    outputs are multiplied by s (trained network) and 2 - s (averaged network), where s is learned.
    """

    def __init__(
        self, learned: nn.Module, average: nn.Module, *, momentum: float, scaled: bool
    ) -> None:
        super().__init__()
        self.learned, self.average = learned, average.requires_grad_(False)
        self.momentum = momentum
        self.scale = nn.Parameter(torch.ones(())) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both networks' outputs, multiplied by their scales if `scaled`."""
        learned: Tensor = self.learned(x)
        average: Tensor = self.average(x)
        if self.scale is None:
            return learned + average
        return self.scale * learned + (2 - self.scale) * average

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Update the averages with `weights`. Call this under `no_grad`."""
        parameters = dict(self.average.named_parameters())
        averages: list[Tensor] = [*parameters.values()]
        torch._foreach_mul_(averages, self.momentum)
        torch._foreach_add_(averages, [weights[n] for n in parameters], alpha=1 - self.momentum)


class MomentumCriterion(Criterion):
    """The local loss `base`, computed from the output of a `Mixture` instead of the features.

    `watch` names the unit whose weights the mixture averages; None if this unit has no weights.
    """

    def __init__(self, mixture: Mixture, base: Criterion, watch: Watch | None) -> None:
        super().__init__(mixture, base.features, base.task)
        self.base = base
        self.reads, self.watches = base.reads, watch

    @property
    def mixture(self) -> Mixture:
        """The network whose output the local loss reads."""
        assert isinstance(self.head, Mixture)
        return self.head

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the batch, a scalar, and the prediction."""
        (feature,) = self.features
        found: tuple[Tensor, Tensor] = self.base({**values, feature: self.mixture(values[feature])})
        return found

    def see(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Update the averages. Do nothing in the first lag - 1 batches (see `Criterion.see`)."""
        if steps >= 0:
            self.mixture.update(weights)
