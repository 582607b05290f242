"""Prediction and similarity matching (Nokland and Eidnes, 2019, arXiv 1901.06656).

Legend: B batch, C channels, H height, W width of a map.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.local.parts import AsMap, Probe, gram, map_shape
from ppll_cli.models.unit import check_size
from ppll_cli.tasks.classification import class_shares, classes_of


class PredSim(LocalMethod):
    """Each module is trained to predict the label, and to make like features for like labels.

    Prediction: pool, Linear, cross-entropy. Similarity: a 3x3 convolution, and the mean squared
    difference between how alike the batch's samples are behind it and how alike their labels are
    (`similarities`). The loss is (1 - similarity) * the first + similarity * the second. The label
    of a mixed image is the row of its classes' shares (ours).

    Details are those of the paper's code (github.com/anokland/local-loss), but for the Linear's
    initial weights, which are zero there and torch's here, and the pooling of odd sizes.

    Args:
        similarity: Weight of the similarity loss, from 0, where its convolution is left out, to 1,
            where the classifier is a `Probe`, so that the module still has an accuracy (ours).
        width: How many values the Linear reads, at most: the longer side of the map is halved
            until there are no more, or only one a channel. What does not divide is rounded up. 2048
            is what the paper's code is given for CIFAR-10.
    """

    def __init__(self, *, similarity: float = 0.99, width: int = 2048) -> None:
        if not 0 <= similarity <= 1:
            raise ConfigError(
                "local.similarity", similarity, "is out of range", "give 0 <= similarity <= 1"
            )
        check_size("local.width", width)
        self.similarity, self.width = similarity, width

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        classes = classes_of(site.task, "predsim", key="local")
        channels, height, width = map_shape(site.spec.shape)
        kernel = pool_kernel(height, width, self.width // channels)
        pooled = channels * _windows(height, kernel[0]) * _windows(width, kernel[1])
        # Unlike adaptive pooling, this has a deterministic backward on CUDA.
        pool = nn.AvgPool2d(kernel, ceil_mode=True)
        head: nn.Module = nn.Sequential(AsMap(), pool, nn.Flatten(), nn.Linear(pooled, classes))
        if self.similarity == 0:
            return Criterion(head, (site.feature,), site.task)
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        return PredSimCriterion(head, convolution, site, classes, self.similarity)


class PredSimCriterion(Criterion):
    """Similarity matching beside a classifier.

    Args:
        head: The classifier.
        convolution: What samples are compared behind.
        site: Where both are attached.
        classes: How many there are.
        similarity: Weight of the similarity loss, above 0.
    """

    def __init__(
        self, head: nn.Module, convolution: nn.Module, site: Site, classes: int, similarity: float
    ) -> None:
        probed = similarity == 1
        super().__init__(Probe(head) if probed else head, (site.feature,), site.task)
        self.compared = nn.Sequential(AsMap(), convolution)
        self.classes = classes
        self.weights = (1.0 if probed else 1 - similarity, similarity)

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch, a scalar, and the classifier's logits [B, classes]."""
        loss, prediction = super().forward(values)
        (feature,) = self.features
        found = similarities(summary(self.compared(values[feature])))
        wanted = similarities(class_shares(values, self.classes))
        prediction_weight, similarity_weight = self.weights
        return prediction_weight * loss + similarity_weight * F.mse_loss(found, wanted), prediction


def summary(x: Tensor) -> Tensor:
    """Maps [B, C, H, W] to the vectors by which samples are compared, in float32.

    The standard deviation of each channel over its positions, where there are more than three
    channels and more than one position; else all values.
    """
    x = x.float().flatten(2)
    return x.std(dim=2) if x.shape[1] > 3 and x.shape[2] > 1 else x.flatten(1)


def similarities(vectors: Tensor) -> Tensor:
    """How alike each two vectors are: [B, D] to [B, B], from -1 to 1.

    The cosine between them, after the mean of its own D entries was taken from each.
    """
    vectors = vectors.float()
    return gram(F.normalize(vectors - vectors.mean(dim=1, keepdim=True), dim=1, eps=1e-8))


def pool_kernel(height: int, width: int, positions: int) -> tuple[int, int]:
    """Height and width of the windows in which a map is averaged so that few are left.

    The longer side, the height where both are equal, is halved until there are no more than
    `positions` windows, or one.
    """
    kernel_height = kernel_width = 1
    while True:
        rows, columns = _windows(height, kernel_height), _windows(width, kernel_width)
        if rows * columns <= max(1, positions):
            return kernel_height, kernel_width
        if rows >= columns:
            kernel_height = min(2 * kernel_height, height)
        else:
            kernel_width = min(2 * kernel_width, width)


def _windows(size: int, kernel: int) -> int:
    """How many windows cover a side; the last may be cut short."""
    return -(-size // kernel)
