"""What a task is."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from ppll_cli.settings import FeatureBank
from ppll_cli.values import ValueSpec


class Task(Protocol):
    """Targets, loss, metric and heads. Nothing outside `tasks` looks further.

    Attributes:
        metric: Name of the metric, one of those that `score` returns; higher is better.
        targets: What a batch carries beside its images, for the loss, by name.
    """

    @property
    def metric(self) -> str: ...  # noqa: D102

    @property
    def targets(self) -> Mapping[str, ValueSpec]: ...  # noqa: D102

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The mean loss over the samples of a batch, a scalar."""
        ...

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """What the metric needs of one batch, float64 [n]; the parts of several batches add up."""
        ...

    def score(self, sums: list[float]) -> Mapping[str, float]:
        """What is reported beside the loss, given the sum of what `measure` returned.

        By name, the metric first. What was not measured is left out.
        """
        ...

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """The smallest network from features of this shape (no batch dimension) to a prediction."""
        ...

    def banked(self, shape: tuple[int, ...]) -> nn.Module:
        """What a feature bank keeps of features of this shape: a module without parameters."""
        ...

    def bank_head(
        self, head: nn.Module, banked: Sequence[tuple[int, ...]], bank: FeatureBank
    ) -> nn.Module:
        """A head that reads a feature bank as well: called with features and what is banked.

        Args:
            head: A copy of the model's head.
            banked: Shapes of the features whose banked form is read, at least one.
            bank: How they are fused.

        Raises:
            ConfigError: The head cannot be extended so.
        """
        ...
