"""What a task is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec

Shape = tuple[int, ...]
"""Of features, without the batch dimension."""


@dataclass(frozen=True)
class Copies:
    """What an auxiliary network can be made of: a model's own parts with fresh weights.

    Attributes:
        units: Copies of units that follow a module, in order; there may be none.
        shapes: Of the module's features, and of what each of the copies makes in turn.
        head: A copy of the model's head, which takes what the last of them makes.
    """

    units: Sequence[nn.Module]
    shapes: Sequence[Shape]
    head: nn.Module


class CopiedNetwork(nn.Module):
    """Copied units in a row, and a head, which may read banked features as well."""

    def __init__(self, units: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.units, self.head = nn.Sequential(*units), head

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """A module's features, and what is banked, to a prediction."""
        prediction: Tensor = self.head(self.units(x), *bank)
        return prediction


class Task(Protocol):
    """Targets, loss, metric and heads. Nothing outside `tasks` looks further.

    A task may also have `reference`, the name of something untrained that its metric is compared
    with: where `score` returns REFERENCE_METRIC, as `bicubic_psnr`, a run's last line names it.

    It may have `long_skips`: true if a feature bank is by default what the model's head reads
    beside its input.

    And it may have `details(rows, names)`, the `ppll_cli.tasks.details.Details` of an evaluation:
    `rows` are those of all batches that `detail(prediction, values)` returns, or where it has no
    such method `measure`, and `names` those of the classes, or of the pictures' files.

    Attributes:
        metric: Name of the metric, one of those that `score` returns; higher is better.
        targets: What a batch carries beside its images, for the loss, by name.
    """

    @property
    def metric(self) -> str: ...  # noqa: D102

    @property
    def targets(self) -> Mapping[str, ValueSpec]: ...  # noqa: D102

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The mean loss over the samples of a batch, a scalar.

        It is also called with tensors on the meta device, so no shape may depend on a value.
        """
        ...

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """What the metrics need of one batch, float64 rows [n, columns]; n may be 0.

        What costs much may be left out in training, where this is called at each step.
        """
        ...

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """What is reported beside the loss, given the rows of all batches, on the CPU.

        By name, the metric first. What was not measured is left out.
        """
        ...

    def smallest_head(self, shape: Shape) -> nn.Module:
        """The smallest network from features of this shape to a prediction."""
        ...

    def banked(self, shape: Shape) -> nn.Module | None:
        """What a feature bank keeps of features of this shape: a module without parameters.

        None: they are of no use to later modules.
        """
        ...

    def bank_network(self, copies: Copies, banked: Sequence[Shape], bank: FeatureBank) -> nn.Module:
        """An auxiliary network, called with a module's features and with what is banked.

        Args:
            copies: What it is made of.
            banked: Shapes of the features whose banked form is read; none: there is no bank.
            bank: How they are fused.

        Raises:
            ConfigError: The model's head cannot be used so.
        """
        ...


AnyTask = TypeVar("AnyTask")


def only_for(kind: type[AnyTask], task: Task, key: str, name: str, use: str, data: str) -> AnyTask:
    """The task, if it is of the kind that `key=name` is for.

    Args:
        kind: Its class.
        task: The run's.
        key: What was chosen.
        name: The name of that option, shown in the message.
        use: What the kind is called.
        data: Data sets that have such tasks.

    Raises:
        ConfigError: It is another one.
    """
    if not isinstance(task, kind):
        raise ConfigError(key, name, f"is for {use}", f"choose a data set {data}")
    return task
