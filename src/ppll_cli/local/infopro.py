"""InfoPro: information propagation (Wang et al., 2021, arXiv 2101.10832).

Legend: B batch, C channels, D width of vectors, H height, W width of a map.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Depth, NotNegative, Positive, Size
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.local.parts import AsMap, Probe, drawn_by_he, gram, map_shape
from ppll_cli.models.unit import IMAGE, ImageSpec
from ppll_cli.tasks.classification import Pool, class_shares, classes_of

Loss = Literal["softmax", "contrastive"]

WEIGHTS = {
    2: (5.0, 1.0, 0.0, 0.0),
    3: (6.0, 0.0, 1.0, 2.0),  # our choice: the weights for 4 modules
    4: (6.0, 0.0, 1.0, 2.0),
    8: (5.0, 0.0, 0.0, 2.0),
    16: (5.0, 0.05, 0.2, 0.5),
}
"""For each number of modules: the weights l1 and l2 of reconstruction and classification at the
first auxiliary network, then at the last one. They come from the commands that InfoPro's authors
published for ResNet-32 on CIFAR-10 with the contrastive loss."""


def _four(weights: list[float]) -> list[float]:
    if len(weights) != 4:
        raise ValueError("must be l1 and l2 of the first auxiliary network, then of the last")
    return weights


Weights = Annotated[list[NotNegative], AfterValidator(_four)]


@dataclass(kw_only=True, eq=False)
class InfoPro(LocalMethod):
    """Trains each module to keep information about the image, and to separate the classes.

    The loss is l1 * reconstruction loss + l2 * classification loss. The weights l1 and l2 change
    linearly from the first auxiliary network to the last. A `Decoder` computes the reconstruction
    loss. The classifier has 3x3 convolutions, each with BatchNorm and ReLU, a mean over positions,
    and a perceptron with one hidden layer (the paper's "1c2f"). Convolutions are initialised by
    He's rule (fan out), as in the paper's code (github.com/blackfeather-wang/InfoPro-Pytorch).

    If l1 is 0, there is no decoder. If l2 is 0, the classifier is a `Probe`, which only measures
    the module's accuracy (our choice). The task must be classification.

    Attributes:
        loss: The classification loss. `softmax`: cross-entropy. `contrastive`: the
            `contrastive_loss` of vectors that the classifier makes in place of logits; then a
            Linear `Probe` on these vectors measures the module's accuracy (our choice).
        weights: l1 and l2 at the first auxiliary network, then at the last one. None: the weights
            in `WEIGHTS` for the nearest number of modules (our choice).
        width: Largest number of channels of the classifier. A convolution with fewer than `width`
            input channels has stride 2 and doubles the number of channels, up to `width`. Any other
            convolution has stride 1 and `width` output channels.
        hidden: Width of the perceptron's hidden layer, and of the contrastive vectors.
        convolutions: Number of convolutions of the classifier.
        decoder_width: Number of channels inside the decoder.
        temperature: See `contrastive_loss`.
    """

    loss: Loss = "softmax"
    weights: Weights | None = None
    width: Size = 64
    hidden: Size = 128
    convolutions: Depth = 1
    decoder_width: Size = 12
    temperature: Positive = 0.07

    def criterion(self, site: Site, key: str = "local") -> Criterion:
        """Return a module's auxiliary network and local loss.

        If the data have no images, the error message names the setting `key`.

        Raises:
            ConfigError: The task is not classification, or both weights of the loss are 0, or there
                is a reconstruction loss but the data have no images.
        """
        classes = classes_of(site.task, "infopro", key="local")
        weights = self.weights_at(site)
        if not any(weights):
            problem = f"l1 and l2 are both 0 at module {site.module}, so nothing would train it"
            remedy = "make l1 or l2 greater than 0 for the first and for the last auxiliary network"
            raise ConfigError("local.weights", self.weights, problem, remedy)
        channels, _, _ = map_shape(site.spec.shape)
        decoder: Decoder | None = None
        if weights[0]:
            decoder = Decoder(channels, _images(site, key), self.decoder_width)
        if self.loss == "softmax":
            return InfoProCriterion(self._head(channels, classes), decoder, site, weights)
        probe = Probe(nn.Linear(self.hidden, classes))
        head = self._head(channels, self.hidden)
        return ContrastiveCriterion(head, decoder, site, weights, probe, self.temperature)

    def weights_at(self, site: Site) -> tuple[float, float]:
        """Return a module's weights of the reconstruction loss and of the classification loss."""
        weights = self.weights
        if weights is None:
            count = len(site.modules)
            # If two numbers are equally near, the smaller one is used, because it is listed first.
            weights = [*WEIGHTS[min(WEIGHTS, key=lambda known: abs(known - count))]]
        first_l1, first_l2, last_l1, last_l2 = weights
        last = site.progress
        first = 1 - last
        return first * first_l1 + last * last_l1, first * first_l2 + last * last_l2

    def _head(self, channels: int, outputs: int) -> nn.Module:
        layers: list[nn.Module] = [AsMap()]
        for _ in range(self.convolutions):
            # For more than `width` input channels this is our choice.
            inputs, stride = channels, 2 if channels < self.width else 1
            channels = min(2 * channels, self.width)
            convolution = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        perceptron = [nn.Linear(channels, self.hidden), nn.ReLU(inplace=True)]
        last = nn.Linear(self.hidden, outputs)
        return drawn_by_he(nn.Sequential(*layers, Pool(3), *perceptron, last))


def _images(site: Site, key: str) -> ImageSpec:
    if not isinstance(site.input_spec, ImageSpec):
        problem = "reconstructs images, but the data set has none"
        remedy = "choose another, or leave out the reconstruction: local.weights=[0,1,0,1]"
        raise ConfigError(key, "infopro", problem, remedy)
    return site.input_spec


class Decoder(nn.Module):
    """Reconstructs the image from features, and measures the error of the reconstruction.

    The features, as a map, are enlarged bilinearly to the image's size. A 3x3 convolution,
    BatchNorm, ReLU and another 3x3 convolution compute a logit for each pixel and channel. The loss
    is binary cross-entropy between the logits and the image's pixels in [0, 1].

    Args:
        channels: Number of channels of the map.
        image: Size, channels, mean and standard deviation of the images.
        width: Number of channels between the two convolutions.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, image: ImageSpec, width: int) -> None:
        super().__init__()
        self.size = (image.height, image.width)
        layers = (
            nn.Conv2d(channels, width, 3, padding=1, bias=False),  # BatchNorm would cancel a bias
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, image.channels, 3, padding=1),
        )
        self.network = drawn_by_he(nn.Sequential(*layers))
        for name, numbers in (("mean", image.mean), ("std", image.std)):
            tensor = torch.tensor(numbers, dtype=torch.float32)[:, None, None]
            self.register_buffer(name, tensor, persistent=False)  # a constant, not trained

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Return the mean reconstruction loss, a float32 scalar.

        `x` has the features: maps, tokens or vectors, which `AsMap` converts to maps. Images are
        normalised, float [B, C, H, W].
        """
        enlarged = F.interpolate(AsMap()(x), self.size, mode="bilinear", align_corners=True)
        logits = self.network(enlarged).float()
        return F.binary_cross_entropy_with_logits(logits, self.pixels(image))

    def pixels(self, image: Tensor) -> Tensor:
        """Convert normalised images to float32 pixels, clamped to [0, 1]."""
        # Rounding, or a user's data set, can cause values outside of this range.
        return (image.float() * self.std + self.mean).clamp(0, 1)


class InfoProCriterion(Criterion):
    """The sum of reconstruction loss and cross-entropy, with the two weights of `InfoPro`.

    Args:
        head: The classifier. If its weight is 0, it is trained as a `Probe`, with weight 1.
        decoder: Computes the reconstruction loss; None if there is none.
        site: Describes the module.
        weights: Weights l1 and l2 of the reconstruction loss and of the cross-entropy.
    """

    def __init__(
        self, head: nn.Module, decoder: Decoder | None, site: Site, weights: tuple[float, float]
    ) -> None:
        probed = weights[1] == 0
        super().__init__(Probe(head) if probed else head, (site.feature,), site.task)
        self.weights = (weights[0], 1.0 if probed else weights[1])
        self.decoder = decoder
        if decoder is not None:
            self.reads = (*self.reads, IMAGE)

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:  # noqa: D102
        loss, prediction = self.classify(values)
        if self.decoder is not None:
            (feature,) = self.features
            loss = loss + self.weights[0] * self.decoder(values[feature], values[IMAGE])
        return loss, prediction

    def classify(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the weighted classification loss, a scalar, and logits [B, classes]."""
        loss, prediction = super().forward(values)
        return self.weights[1] * loss, prediction


class ContrastiveCriterion(InfoProCriterion):
    """InfoPro's loss with `contrastive_loss` in place of cross-entropy.

    The head makes vectors. A `Probe` computes logits from the vectors, and its loss is added.
    """

    def __init__(
        self,
        head: nn.Module,
        decoder: Decoder | None,
        site: Site,
        weights: tuple[float, float],
        probe: Probe,
        temperature: float,
    ) -> None:
        super().__init__(head, decoder, site, weights)
        self.probe, self.temperature = probe, temperature

    def classify(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:  # noqa: D102
        (feature,) = self.features
        vectors = F.normalize(self.head(values[feature]).float(), dim=1)
        prediction = self.probe(vectors)
        shares = class_shares(values, prediction.shape[1])
        loss = contrastive_loss(vectors, shares, self.temperature)
        return self.weights[1] * loss + self.task.loss(prediction, values), prediction


def contrastive_loss(vectors: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """Compute the supervised contrastive loss (Khosla et al., 2020, arXiv 2004.11362, L_out).

    For each sample, the logits are the dot products of its vector with all other vectors, divided
    by the temperature. Their softmax gives each other sample a probability. The loss of the sample
    is the mean of -log(probability) over the other samples of its class. The result is the mean
    over samples, without samples that are alone in their class (InfoPro's code includes them with
    loss 0). If no sample remains, the result is 0.

    If images are mixed, a sample has shares of several classes. Then the two means are weighted
    (our choice). Let w(a, b) be the dot product of the shares of samples a and b. In the loss of
    sample a, the weight of another sample b is w(a, b). Let s(a) be the sum of w(a, b) over all
    other samples b. In the mean over samples, the weight of sample a is min(1, s(a)), and the
    divisor is max(1, sum of these weights).

    Args:
        vectors: Vectors of length 1, float [B, D].
        shares: The share of each class in each sample, float [B, classes].
        temperature: Divisor of the dot products.

    Returns:
        A float32 scalar.
    """
    itself = torch.eye(len(shares), dtype=torch.bool, device=shares.device)
    alike = gram(shares).masked_fill(itself, 0)
    products = gram(vectors) / temperature
    # Minus infinity would make the softmax NaN for a batch of one sample.
    others = products.masked_fill(itself, torch.finfo(products.dtype).min)
    found = torch.where(alike > 0, alike * F.log_softmax(others, dim=1), 0).sum(dim=1)
    wanted = alike.sum(dim=1)
    losses = -found / wanted.clamp(min=1)
    return losses.sum() / wanted.clamp(max=1).sum().clamp(min=1)
