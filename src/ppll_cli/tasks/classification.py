"""Classification: one label for each image."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.tasks.task import Task

LABEL = "label"
"""The name under which a batch carries its labels, int64 [B]."""


class Pool(nn.Module):
    """The mean over all positions: maps [B, C, H, W] and tokens [B, T, D] become [B, width].

    Args:
        dimensions: Dimensions of the features without the batch: 3 maps, 2 tokens, 1 vectors,
            which are passed on as they are.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x: Tensor) -> Tensor:
        """Features to vectors."""
        if self.dimensions == 3:
            return x.mean(dim=(2, 3))
        return x.mean(dim=1) if self.dimensions == 2 else x


def pooled_width(shape: tuple[int, ...]) -> int:
    """Width of the vector that `Pool` makes of features of this shape (no batch dimension)."""
    return shape[0] if len(shape) == 3 else shape[-1]


@dataclass(frozen=True)
class Classification:
    """Predictions are logits [B, classes]; the loss is cross-entropy, the metric accuracy."""

    classes: int
    metric: str = "accuracy"
    targets: tuple[str, ...] = (LABEL,)

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy, computed in float32 also under autocast."""
        return F.cross_entropy(prediction.float(), values[LABEL])

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """[correct predictions, samples]."""
        labels = values[LABEL]
        correct = (prediction.argmax(dim=1) == labels).sum().double()
        return torch.stack((correct, torch.full_like(correct, len(labels))))

    def score(self, sums: list[float]) -> float:
        """Accuracy in [0, 1]."""
        return sums[0] / sums[1]

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """Pool, Linear."""
        return nn.Sequential(Pool(len(shape)), nn.Linear(pooled_width(shape), self.classes))


def classes_of(task: Task, model: str) -> int:
    """How many classes the task has.

    Raises:
        ConfigError: The task is another one; `model` is named as the cause.
    """
    if not isinstance(task, Classification):
        raise ConfigError(
            "model", model, "is for classification", "choose a data set with class labels"
        )
    return task.classes
