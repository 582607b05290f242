"""What a task is."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class Task(Protocol):
    """Targets, loss, metric and smallest head. Nothing outside `tasks` looks further.

    Attributes:
        metric: Name of the metric in reports; higher is better.
        targets: Names of the tensors that a batch carries beside its images, for the loss.
    """

    @property
    def metric(self) -> str: ...  # noqa: D102

    @property
    def targets(self) -> tuple[str, ...]: ...  # noqa: D102

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The mean loss over the samples of a batch, a scalar."""
        ...

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """What the metric needs of one batch, float64 [n]; the parts of several batches add up."""
        ...

    def score(self, sums: list[float]) -> float:
        """The metric, from the sum of what `measure` returned for all batches."""
        ...

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """The smallest network from features of this shape (no batch dimension) to a prediction."""
        ...
