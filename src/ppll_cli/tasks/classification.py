"""Classification: one label for each image, or two with a share each where images are mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.tasks.details import Details, by_class
from ppll_cli.tasks.task import CopiedNetwork, Copies, Task, only_for

LABEL = "label"
"""The name under which a batch carries its labels, int64 [B]."""

OTHER_LABEL = "label.other"
"""Where images are mixed in pairs, the label with the smaller share; `LABEL` has the larger one."""

SHARE = "label.share"
"""Where images are mixed in pairs, the larger share, from 0.5 to 1. It is float64, which
`transport.wire_dtype` leaves as it is: every stage has to learn the same target."""

TARGETS = {LABEL: ValueSpec((), torch.int64)}
MIXED_TARGETS = {
    **TARGETS,
    OTHER_LABEL: ValueSpec((), torch.int64),
    SHARE: ValueSpec((), torch.float64),
}


def class_shares(values: Mapping[str, Tensor], classes: int) -> Tensor:
    """How much of each target is a class's: rows that add up to 1, float32 [B, classes].

    A row is one-hot where images are not mixed. Labels are not smoothed.

    Args:
        values: The targets of a batch, by name.
        classes: How many there are.
    """
    numbers = torch.arange(classes, device=values[LABEL].device)
    rows = (values[LABEL][:, None] == numbers).float()
    if SHARE not in values:
        return rows
    others, share = values[OTHER_LABEL][:, None] == numbers, values[SHARE].float()[:, None]
    return share * rows + (1 - share) * others


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


class ClassifierHead(nn.Module):
    """The head of a classifier, in two steps: features to a vector, and the vector to logits.

    Attributes:
        fc: The second step; a subclass makes it.
    """

    fc: nn.Linear

    def pooled(self, x: Tensor) -> Tensor:
        """Features to vectors [B, D]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Features to logits [B, classes]."""
        logits: Tensor = self.fc(self.pooled(x))
        return logits


class FusedHead(nn.Module):
    """A head whose vector is fused with a feature bank (arXiv 2406.00446; the details are ours).

    Each banked vector is projected to the head's width D by Linear and ReLU. `add` sums them and
    the head's own vector; `concatenate` joins all, and a Linear takes them back to D, so that the
    classifier behind it is shaped like the model's. This Linear begins by passing the head's own
    vector on and leaving the bank out: training lets it in as far as it helps.

    Args:
        head: A copy of the model's head, width D.
        widths: Of the banked vectors.
        fusion: `concatenate` or `add`.
        shared_head: Whether the classifier has the shape of the model's; else it reads the
            joined vectors themselves.
    """

    def __init__(
        self, head: ClassifierHead, widths: Sequence[int], fusion: str, shared_head: bool
    ) -> None:
        super().__init__()
        self.head, self.fusion = head, fusion
        width, joined = head.fc.in_features, head.fc.in_features * (1 + len(widths))
        self.projections = nn.ModuleList(nn.Linear(banked, width) for banked in widths)
        self.mix: nn.Linear | None = None
        if fusion == "concatenate" and shared_head:
            self.mix = nn.Linear(joined, width)
            nn.init.eye_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)
        if not shared_head:
            head.fc = nn.Linear(joined, head.fc.out_features)

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Features, and banked vectors [B, width], to logits [B, classes]."""
        vectors = [self.head.pooled(x)]
        vectors += [F.relu(p(b)) for p, b in zip(self.projections, bank, strict=True)]
        if self.fusion == "add":
            vector = torch.stack(vectors).sum(dim=0)
        else:
            vector = torch.cat(vectors, dim=1)
        if self.mix is not None:
            vector = self.mix(vector)
        logits: Tensor = self.head.fc(vector)
        return logits


@dataclass(frozen=True)
class Classification:
    """Predictions are logits [B, classes]; the loss is cross-entropy, the metric accuracy.

    Attributes:
        classes: Number of classes; labels are 0 to classes - 1.
        label_smoothing: Part of each target that is shared evenly among all classes, in training.
        mixed: Whether images are mixed in pairs, in training: each then has two labels.
    """

    classes: int
    metric: str = "accuracy"
    label_smoothing: float = 0.0
    mixed: bool = False

    @property
    def targets(self) -> Mapping[str, ValueSpec]:
        """What a batch carries beside its images, by name."""
        return MIXED_TARGETS if self.mixed else TARGETS

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy, computed in float32 also under autocast.

        Where gradients are computed, targets are the labels' shares, and smoothed. Elsewhere they
        are the labels, so that losses of evaluation can be compared between all runs.
        """
        learning = torch.is_grad_enabled()
        smoothing = self.label_smoothing if learning else 0.0
        mixed = learning and self.mixed
        targets = class_shares(values, self.classes) if mixed else values[LABEL]
        return F.cross_entropy(prediction.float(), targets, label_smoothing=smoothing)

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """[correct predictions, samples], [1, 2].

        Of a mixed image the label with the larger share is the correct one.
        """
        labels = values[LABEL]
        correct = (prediction.argmax(dim=1) == labels).sum().double()
        return torch.stack((correct, torch.full_like(correct, len(labels))))[None]

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """Accuracy in [0, 1]."""
        correct, samples = rows.sum(dim=0).tolist()
        return {self.metric: correct / samples}

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Of each class, float32 [B, classes]."""
        return prediction.float().softmax(dim=1)

    def detail(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Label and predicted label of each sample, int64 [B, 2]."""
        return torch.stack((values[LABEL], prediction.argmax(dim=1)), dim=1)

    def details(self, rows: Tensor, names: Sequence[str]) -> Details:
        """Accuracy by class, and the confusion matrix, given the rows of `detail`."""
        return by_class(rows, names or tuple(map(str, range(self.classes))))

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """Pool, Linear."""
        return nn.Sequential(Pool(len(shape)), nn.Linear(pooled_width(shape), self.classes))

    def banked(self, shape: tuple[int, ...]) -> nn.Module:
        """Features pooled to vectors, so that little travels."""
        return Pool(len(shape))

    def bank_network(
        self, copies: Copies, banked: Sequence[tuple[int, ...]], bank: FeatureBank
    ) -> nn.Module:
        """Where there is a bank, the head has a `FusedHead` around it."""
        head = copies.head
        if not banked:
            return CopiedNetwork(copies.units, head)
        if not isinstance(head, ClassifierHead):
            raise ConfigError(
                "fba",
                "on",
                f"the model's head, {type(head).__name__}, does not say where it pools",
                "derive it from ppll_cli.tasks.classification.ClassifierHead, or use fba=off",
            )
        widths = [pooled_width(shape) for shape in banked]
        fused = FusedHead(head, widths, bank.joined, bank.shared_head)
        return CopiedNetwork(copies.units, fused)


def with_smoothing(task: Task, amount: float) -> Task:
    """The task with `optim.label_smoothing`.

    Raises:
        ConfigError: It has no labels that could be smoothed.
    """
    if not amount:
        return task
    key, data = "optim.label_smoothing", "with class labels, or give 0"
    labelled = only_for(Classification, task, key, str(amount), "classification", data)
    return replace(labelled, label_smoothing=amount)


def with_mixing(task: Task, mixed: Mapping[str, float]) -> Task:
    """The task for batches whose images are mixed in pairs.

    Args:
        task: That of the data set.
        mixed: The keys of the data set that have images mixed, with their values; none: no key.

    Raises:
        ConfigError: The task has no labels that could be mixed.
    """
    if not mixed:
        return task
    key, value = next(iter(mixed.items()))
    data = "with class labels, or give 0"
    labelled = only_for(Classification, task, key, str(value), "classification", data)
    return replace(labelled, mixed=True)


def classes_of(task: Task, name: str, key: str = "model") -> int:
    """How many classes the task has.

    Raises:
        ConfigError: The task is another one; `key=name` is named as the cause.
    """
    task = only_for(Classification, task, key, name, "classification", "with class labels")
    return task.classes
