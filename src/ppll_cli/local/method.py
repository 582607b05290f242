"""What a local method is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor, nn

from ppll_cli.models.unit import Unit, ValueSpec
from ppll_cli.tasks.task import Task


@dataclass(frozen=True)
class Site:
    """Where an auxiliary network is attached: to the last unit of a module.

    Attributes:
        module: Number of the module, from 0.
        modules: How many modules the model has.
        units: All units of the model, in order.
        stop: Index of the first unit behind the module.
        feature: Name of the tensor that the module's last unit makes.
        spec: Shape and dtype of that tensor.
        task: What is learnt.
    """

    module: int
    modules: int
    units: Sequence[Unit]
    stop: int
    feature: str
    spec: ValueSpec
    task: Task

    @classmethod
    def of(
        cls,
        modules: Sequence[range],
        module: int,
        units: Sequence[Unit],
        features: Sequence[ValueSpec],
        task: Task,
    ) -> Self:
        """The site of one of the modules, given the units of each, and what each unit makes."""
        last = modules[module].stop - 1
        feature = units[last].writes[0]
        return cls(module, len(modules), units, last + 1, feature, features[last], task)


class Criterion(nn.Module):
    """A head and the task's loss on what it predicts.

    This is what trains a module: its parameters are the module's auxiliary network. A method whose
    loss is another one overrides `forward` and, if it reads more than this, `reads`.

    Args:
        head: From the feature to a prediction.
        feature: Name of the tensor that the head reads.
        task: Whose loss is taken.

    Attributes:
        reads: Names of all tensors that are read, targets included.
    """

    def __init__(self, head: nn.Module, feature: str, task: Task) -> None:
        super().__init__()
        self.head, self.feature, self.task = head, feature, task
        self.reads: tuple[str, ...] = (feature, *task.targets)

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch, a scalar, and the prediction."""
        prediction = self.head(values[self.feature])
        return self.task.loss(prediction, values), prediction


class LocalMethod(Protocol):
    """What a method's class offers; its constructor takes the keys of its YAML file."""

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module that is not the model's last.

        Raises:
            ConfigError: The method does not apply to this model.
        """
        ...


def module_criterion(method: LocalMethod, site: Site) -> Criterion:
    """What trains a module: the method's criterion, or for the model's last module the task's loss.

    Raises:
        ConfigError: The method does not apply to this model.
    """
    if site.stop == len(site.units):
        return Criterion(nn.Identity(), site.feature, site.task)
    return method.criterion(site)
