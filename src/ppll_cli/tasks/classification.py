"""Classification: an image has one label or, if two are mixed, two labels with their shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec
from ppll_cli.tasks.details import Details
from ppll_cli.tasks.task import Task, only_for

LABEL = "label"
"""Name of the labels, int64 [B]; for a mixed image, the label with the larger share."""

OTHER_LABEL = "label.other"
"""Name of the labels with the smaller share, int64 [B], if images are mixed in pairs."""

SHARE = "label.share"
"""Name of the share of `LABEL` in each mixed image, float64 [B], from 0.5 to 1.
It is float64, because `transport.wire_dtype=bf16` rounds float32 in messages.
"""

TARGETS = {LABEL: ValueSpec((), torch.int64)}
MIXED_TARGETS = {
    **TARGETS,
    OTHER_LABEL: ValueSpec((), torch.int64),
    SHARE: ValueSpec((), torch.float64),
}


def class_shares(values: Mapping[str, Tensor], classes: int) -> Tensor:
    """Return the share of each class in each sample, before label smoothing, float32 [B, classes].

    For an image that is not mixed, the share of its label is 1.
    """
    numbers = torch.arange(classes, device=values[LABEL].device)
    rows = (values[LABEL][:, None] == numbers).float()
    if SHARE not in values:
        return rows
    others, share = values[OTHER_LABEL][:, None] == numbers, values[SHARE].float()[:, None]
    return share * rows + (1 - share) * others


class Pool(nn.Module):
    """Averages maps [B, C, H, W] or tokens [B, T, D] over positions, which gives vectors.

    `dimensions` is the number of dimensions of the features without the batch: 3 for maps, 2 for
    tokens, 1 for vectors, which are returned unchanged.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x: Tensor) -> Tensor:
        """Convert features to vectors [B, width]."""
        if self.dimensions == 3:
            return x.mean(dim=(2, 3))
        return x.mean(dim=1) if self.dimensions == 2 else x


def pooled_width(shape: tuple[int, ...]) -> int:
    """Return the width of the vectors that `Pool` makes; `shape` is without the batch dimension."""
    return shape[0] if len(shape) == 3 else shape[-1]


class ClassifierHead(nn.Module):
    """Converts features to vectors, and vectors to logits by `fc`, which a subclass creates."""

    fc: nn.Linear

    def pooled(self, x: Tensor) -> Tensor:
        """Convert features to vectors [B, D]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] for features."""
        logits: Tensor = self.fc(self.pooled(x))
        return logits


@dataclass(frozen=True)
class Classification:
    """Predictions are logits [B, classes]; the loss is cross-entropy, the metric accuracy.

    Attributes:
        classes: Number of classes; labels are 0 to classes - 1.
        label_smoothing: Fraction of each training target that is distributed evenly over all
            classes.
        mixed: Whether images are mixed in pairs in training, so that each has two labels.
    """

    classes: int
    metric: str = "accuracy"
    label_smoothing: float = 0.0
    mixed: bool = False

    @property
    def targets(self) -> Mapping[str, ValueSpec]:
        """Shape (without the batch dimension) and dtype of each target, by name."""
        return MIXED_TARGETS if self.mixed else TARGETS

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy, in float32 also under autocast.

        In training, that is, if gradients are enabled, labels are smoothed, and a mixed image
        counts for both of its labels. In evaluation only the plain `LABEL` counts, so that the
        losses of all runs can be compared.

        Raises:
            ValueError: The prediction does not have one logit for each class.
        """
        if prediction.shape[1:] != (self.classes,):
            found = ", ".join(map(str, ("B", *prediction.shape[1:])))
            raise ValueError(f"the logits have the shape [{found}] instead of [B, {self.classes}]")
        learning = torch.is_grad_enabled()
        smoothing = self.label_smoothing if learning else 0.0
        mixed = learning and self.mixed
        targets = class_shares(values, self.classes) if mixed else values[LABEL]
        return F.cross_entropy(prediction.float(), targets, label_smoothing=smoothing)

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """Return the number of correct predictions and the number of samples, float64 [1, 2].

        A prediction is correct if the class with the largest logit is the sample's `LABEL`.
        """
        labels = values[LABEL]
        correct = (prediction.argmax(dim=1) == labels).sum().double()
        return torch.stack((correct, torch.full_like(correct, len(labels))))[None]

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """Return the accuracy in [0, 1]."""
        correct, samples = rows.sum(dim=0).tolist()
        return {self.metric: correct / samples}

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Return the probability of each class, float32 [B, classes]."""
        return prediction.float().softmax(dim=1)

    def detail(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the label and the predicted label of each sample, int64 [B, 2]."""
        return torch.stack((values[LABEL], prediction.argmax(dim=1)), dim=1)

    def details(self, rows: Tensor, names: Sequence[str]) -> Details:
        """Return the accuracy of each class and the confusion matrix, from rows of `detail`.

        `names` has the names of the classes. If it is empty, their numbers are the names.
        """
        names = names or tuple(map(str, range(self.classes)))
        count = len(names)
        table = torch.bincount(rows[:, 0] * count + rows[:, 1], minlength=count * count)
        confusion = table.view(count, count)
        entries = []
        for label, (name, row) in enumerate(zip(names, confusion, strict=True)):
            samples, right = int(row.sum()), int(row[label])
            accuracy = right / samples if samples else None
            entries.append({"class": name, "samples": samples, "accuracy": accuracy})
        return Details("class", entries, confusion.tolist())

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """Return the smallest head for features of this shape: a pool and a Linear layer."""
        return nn.Sequential(Pool(len(shape)), nn.Linear(pooled_width(shape), self.classes))


def with_smoothing(task: Task, amount: float) -> Task:
    """Return the task with this amount of label smoothing, from 0 to below 1.

    Raises:
        ConfigError: The amount is not 0, and the task is not classification.
    """
    if not amount:
        return task
    return replace(_labelled(task, "optim.label_smoothing", amount), label_smoothing=amount)


def with_mixing(task: Task, mixed: Mapping[str, float]) -> Task:
    """Return the task for a training in which images are mixed in pairs.

    `mixed` has the settings that mix images and are not 0, for example {"data.mixup": 0.2}. If it
    is empty, the task is returned unchanged.

    Raises:
        ConfigError: `mixed` is not empty, and the task is not classification.
    """
    if not mixed:
        return task
    return replace(_labelled(task, *next(iter(mixed.items()))), mixed=True)


def _labelled(task: Task, key: str, value: float) -> Classification:
    data = "with class labels, or give 0"
    return only_for(Classification, task, key, str(value), "classification", data)


def classes_of(task: Task, name: str, key: str = "model") -> int:
    """Return the task's number of classes, because the setting `key=name` is for classification.

    Raises:
        ConfigError: The task is not classification.
    """
    task = only_for(Classification, task, key, name, "classification", "with class labels")
    return task.classes
