"""PredSim: prediction and similarity matching (Nokland and Eidnes, 2019, arXiv 1901.06656).

Legend: B batch, C channels, D length of a vector, H height, W width of a map.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.leaves.limits import Share, Size
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.local.parts import AsMap, Probe, gram, map_shape
from ppll_cli.tasks.classification import class_shares, classes_of


@dataclass(kw_only=True, eq=False)
class PredSim(LocalMethod):
    """Trains each module to predict labels, and to compute similar features for similar labels.

    The loss is (1 - w) * prediction loss + w * similarity loss, where w is `similarity`.

    - The prediction loss is cross-entropy after a pool and a Linear layer.
    - For the similarity loss, a 3x3 convolution reads the module's features. For each pair of
      samples in a batch, the similarity of their convolved features should be the similarity of
      their labels (see `similarities`). The loss is the mean squared difference of these two
      similarities.

    With mixup or CutMix, an image's label is its vector of class shares (our choice). The task must
    be classification.

    Details follow the paper's code (github.com/anokland/local-loss), with two exceptions: the
    Linear layer begins with torch's initial weights instead of zeros, and maps of odd height or
    width are pooled differently.

    Attributes:
        similarity: Weight w of the similarity loss. With 1, the prediction loss does not train the
            module; it trains only a classifier that measures the module's accuracy (our choice).
        width: Largest number of inputs of the Linear layer. The pool makes the map smaller until it
            has at most `width` values, but at least one value per channel. The paper's commands for
            CIFAR-10 use 2048.
    """

    similarity: Share = 0.99
    width: Size = 2048

    def criterion(self, site: Site) -> Criterion:  # noqa: D102
        classes = classes_of(site.task, "predsim", key="local")
        channels, height, width = map_shape(site.spec.shape)
        kernel = pool_kernel(height, width, self.width // channels)
        pooled = channels * _windows(height, kernel[0]) * _windows(width, kernel[1])
        # Not adaptive pooling, because its backward pass is not deterministic on CUDA.
        pool = nn.AvgPool2d(kernel, ceil_mode=True)
        head: nn.Module = nn.Sequential(AsMap(), pool, nn.Flatten(), nn.Linear(pooled, classes))
        if self.similarity == 0:
            return Criterion(head, (site.feature,), site.task)
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        return PredSimCriterion(head, convolution, site, self.similarity)


class PredSimCriterion(Criterion):
    """PredSim's loss, for a weight `similarity` of the similarity loss above 0.

    Args:
        head: Predicts the labels from the features.
        convolution: Reads the features; the similarity loss compares its outputs.
        similarity: Weight of the similarity loss, above 0 and at most 1.
    """

    def __init__(
        self, head: nn.Module, convolution: nn.Module, site: Site, similarity: float
    ) -> None:
        probed = similarity == 1
        super().__init__(Probe(head) if probed else head, (site.feature,), site.task)
        self.compared = nn.Sequential(AsMap(), convolution)
        self.weights = (1.0 if probed else 1 - similarity, similarity)

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the batch, a scalar, and logits [B, classes]."""
        loss, prediction = super().forward(values)
        (feature,) = self.features
        found = similarities(summary(self.compared(values[feature])))
        wanted = similarities(class_shares(values, prediction.shape[1]))
        prediction_weight, similarity_weight = self.weights
        return prediction_weight * loss + similarity_weight * F.mse_loss(found, wanted), prediction


def summary(x: Tensor) -> Tensor:
    """Convert maps [B, C, H, W] to the vectors by which samples are compared: float32 [B, D].

    A vector has, for each channel, the standard deviation over all positions, so D = C. If the maps
    have only one position, or three or fewer channels, a vector has all values of its map.
    """
    x = x.float().flatten(2)
    return x.std(dim=2) if x.shape[1] > 3 and x.shape[2] > 1 else x.flatten(1)


def similarities(vectors: Tensor) -> Tensor:
    """Return the similarity of each pair of vectors, from -1 to 1: [B, D] to [B, B].

    It is the cosine of the two vectors, after each vector's mean is subtracted from its elements.
    """
    vectors = vectors.float()
    return gram(F.normalize(vectors - vectors.mean(dim=1, keepdim=True), dim=1, eps=1e-8))


def pool_kernel(height: int, width: int, positions: int) -> tuple[int, int]:
    """Return height and width of a pool's windows, so that at most `positions` windows cover a map.

    The map has `height` x `width` pixels. If `positions` is below 1, one window covers the map.
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
    return -(-size // kernel)
