"""What a local method is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.pipeline.routes import Watch as Watch
from ppll_cli.tasks.task import Task

MOST_LAG = 4096
"""Batches: so many copies of a unit are kept, and even 64 is far more than methods ask for."""


@dataclass(frozen=True)
class Site:
    """Where an auxiliary network is attached: to the last unit of a module.

    Attributes:
        module: Number of the module, from 0.
        modules: The units of each module, by their index.
        units: All units of the model, in order.
        features: What the first output of each unit is like.
        image: What the model is built for.
        task: What is learnt.
    """

    module: int
    modules: tuple[range, ...]
    units: Sequence[Unit]
    features: Sequence[ValueSpec]
    image: ImageSpec
    task: Task

    @property
    def stop(self) -> int:
        """Index of the first unit behind the module."""
        return self.modules[self.module].stop

    @property
    def feature(self) -> str:
        """Name of the tensor that the module's last unit makes."""
        return self.units[self.stop - 1].writes[0]

    @property
    def spec(self) -> ValueSpec:
        """Shape and dtype of that tensor."""
        return self.features[self.stop - 1]

    @property
    def is_last(self) -> bool:
        """Whether the module ends with the model's own head."""
        return self.stop == len(self.units)

    @property
    def progress(self) -> float:
        """0 at the first module with an auxiliary network, 1 at the last of them."""
        return self.module / max(1, len(self.modules) - 2)

    def at(self, module: int) -> Self:
        """The site of another module."""
        return replace(self, module=module)


class Criterion(nn.Module):
    """A head and the task's loss on what it predicts.

    This is what trains a module: its parameters are the module's auxiliary network. A method whose
    loss is another one overrides `forward` and, if it reads more than this, `reads`.

    Args:
        head: From features to a prediction.
        features: Names of the tensors that the head takes, in order.
        task: Whose loss is taken.

    Attributes:
        reads: Names of all tensors that are read, targets included.
        writes: Names of the tensors that are made for later modules: none.
        watches: A later unit whose weights `see` is given before each training batch; None: none.
    """

    def __init__(self, head: nn.Module, features: tuple[str, ...], task: Task) -> None:
        super().__init__()
        self.head, self.features, self.task = head, features, task
        self.reads: tuple[str, ...] = (*features, *task.targets)
        self.writes: tuple[str, ...] = ()
        self.watches: Watch | None = None

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch, a scalar, and the prediction."""
        prediction = self.head(*(values[name] for name in self.features))
        return self.task.loss(prediction, values), prediction

    def see(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Take note of the weights that are watched, before the forward of a training batch.

        Args:
            weights: The parameters of the unit by their names in it, to be read at once: they are
                overwritten later.
            steps: How many optimizer steps they have; below 0 the initial weights stand in.
        """


class LocalMethod(ABC):
    """How modules are trained. A constructor takes the keys of the method's YAML file.

    Attributes:
        changed: Why auxiliary networks may be others than those of an earlier version, told where a
            run of that version cannot go on.
    """

    changed: ClassVar[str] = ""

    @abstractmethod
    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module that is not the model's last.

        Raises:
            ConfigError: The method does not apply to this model or task.
        """

    def exports(self, site: Site) -> Sequence[Unit]:
        """What a module that is not the last makes for later criteria, beside its output.

        Each is a unit without parameters that runs after the module's own units, outside of the
        gradient. What it writes travels as far as a later criterion reads it.
        """
        return ()


def check_lag(lag: int) -> None:
    """Refuse a lag that is no number of batches, or that would keep versions without end.

    Raises:
        ConfigError: It is less than 1, or above `MOST_LAG`.
    """
    if isinstance(lag, bool) or not isinstance(lag, int) or lag < 1:
        raise ConfigError("local.lag", lag, "is no number of batches", "give 1 or more")
    if lag > MOST_LAG:
        problem = "keeps too many versions of a unit's weights"
        raise ConfigError("local.lag", lag, problem, f"use at most {MOST_LAG}")


def module_criterion(method: LocalMethod, site: Site) -> Criterion:
    """What trains a module: the method's criterion, or for the model's last module the task's loss.

    Raises:
        ConfigError: The method does not apply to this model or task.
    """
    if site.is_last:
        return Criterion(nn.Identity(), (site.feature,), site.task)
    return method.criterion(site)


def module_exports(method: LocalMethod, site: Site) -> Sequence[Unit]:
    """What a module makes for later criteria; nothing comes after the model's last module."""
    return () if site.is_last else method.exports(site)
