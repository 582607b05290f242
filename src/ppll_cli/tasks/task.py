"""The interface of tasks, and parts that tasks share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec

Shape = tuple[int, ...]
"""Shape of features, without the batch dimension."""


@dataclass(frozen=True)
class Copies:
    """Copies of a model's parts, with fresh weights, from which an auxiliary network is made.

    Attributes:
        units: Copies of units after a module, in order; may be empty.
        shapes: Shapes of the module's features and of each copy's output, in order.
        head: A copy of the model's head, which reads the output of the last copy.
    """

    units: Sequence[nn.Module]
    shapes: Sequence[Shape]
    head: nn.Module


def fused(maps: Sequence[Tensor], fusion: str) -> Tensor:
    """Return the sum of maps or vectors if `fusion` is "add"; otherwise concatenate channels."""
    return torch.stack([*maps]).sum(dim=0) if fusion == "add" else torch.cat([*maps], dim=1)


class CopiedNetwork(nn.Module):
    """Copied units one after another, and a head, which may read banked features as well."""

    def __init__(self, units: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.units, self.head = nn.Sequential(*units), head

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Return the prediction for a module's features and banked features."""
        prediction: Tensor = self.head(self.units(x), *bank)
        return prediction


class Task(Protocol):
    """Targets, loss, metric and heads of a task.

    A task may also have these attributes and methods:

    `reference` is the name of something untrained with which the metric is compared. If `score`
    returns REFERENCE_METRIC, such as `bicubic_psnr`, the last line of a run shows it.

    `long_skips` is true if a feature bank holds by default what the model's head reads beside its
    input.

    `details(rows, names)` returns the `ppll_cli.tasks.details.Details` of an evaluation. `names`
    are the names of classes, or of the pictures' files. `rows` are those of all batches that
    `detail(prediction, values)` returned, or `measure` if the task has no `detail`.

    Attributes:
        metric: Name of the metric, one of the names that `score` returns. Higher is better.
        targets: Shape and dtype of what a batch carries beside its images, by name.
    """

    @property
    def metric(self) -> str: ...  # noqa: D102

    @property
    def targets(self) -> Mapping[str, ValueSpec]: ...  # noqa: D102

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the samples of a batch, a scalar.

        It is also called with tensors on the meta device, so no shape may depend on a value.
        """
        ...

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """Return what the metrics need of a batch, float64 [n, columns]; n may be 0.

        In training this is called in each step, so expensive measurements may be left out.
        """
        ...

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """Return the scores of all batches, by name; the metric comes first.

        Args:
            rows: The rows of all batches, float64 [n, columns], on the CPU.

        Returns:
            What is reported beside the loss, without scores that were not measured.
        """
        ...

    def smallest_head(self, shape: Shape) -> nn.Module:
        """Return the smallest network that makes a prediction from features of a shape."""
        ...

    def banked(self, shape: Shape) -> nn.Module | None:
        """Return a module without parameters that converts features to their banked form.

        None means that features of this shape are of no use to later modules.
        """
        ...

    def bank_network(self, copies: Copies, banked: Sequence[Shape], bank: FeatureBank) -> nn.Module:
        """Return an auxiliary network, which is called with a module's and banked features.

        Args:
            copies: The parts from which it is made.
            banked: Shapes of the features whose banked form it reads; empty without a bank.
            bank: How the features are fused.

        Raises:
            ConfigError: The model's head cannot be used in this way.
        """
        ...


AnyTask = TypeVar("AnyTask")


def only_for(kind: type[AnyTask], task: Task, key: str, name: str, use: str, data: str) -> AnyTask:
    """Return the task if it is of the kind that `key=name` needs.

    Args:
        kind: The class of the task that is needed.
        task: The run's task.
        key: The key that needs it.
        name: The chosen value of this key, for the message.
        use: Name of the kind, for the message.
        data: Data sets with such tasks, for the message.

    Raises:
        ConfigError: The task is of another kind.
    """
    if not isinstance(task, kind):
        raise ConfigError(key, name, f"is for {use}", f"choose a data set {data}")
    return task
