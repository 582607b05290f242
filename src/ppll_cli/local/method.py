"""Defines the interface of local learning methods: `LocalMethod`, `Criterion` and `Site`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

from pydantic import Field
from torch import Tensor, nn

from ppll_cli.config.targets import check_options
from ppll_cli.leaves.values import InputSpec, ValueSpec
from ppll_cli.models.unit import Unit
from ppll_cli.pipeline.routes import Watch as Watch
from ppll_cli.tasks.task import Task

Lag = Annotated[int, Field(ge=1, le=4096, strict=True)]
"""Lag in batches. For a lag of n, a worker keeps n versions of the watched unit's weights."""


@dataclass(frozen=True)
class Site:
    """Facts about a module that a local method needs to build the module's auxiliary network.

    Attributes:
        module: Number of the module, from 0.
        modules: For each module, the indices of its units.
        units: All units of the model, in order.
        features: Shape (without the batch dimension) and dtype of the first output of each unit.
        input_spec: Describes the tensors that the model reads; for images an `ImageSpec`.
        task: The task that the model learns.
    """

    module: int
    modules: tuple[range, ...]
    units: Sequence[Unit]
    features: Sequence[ValueSpec]
    input_spec: InputSpec
    task: Task

    @property
    def stop(self) -> int:
        """Index of the first unit after the module."""
        return self.modules[self.module].stop

    @property
    def feature(self) -> str:
        """Name of the module's output, the first output of its last unit."""
        return self.units[self.stop - 1].writes[0]

    @property
    def spec(self) -> ValueSpec:
        """Shape (without the batch dimension) and dtype of the module's output."""
        return self.features[self.stop - 1]

    @property
    def is_last(self) -> bool:
        """Whether the module ends with the model's own head."""
        return self.stop == len(self.units)

    @property
    def progress(self) -> float:
        """Position among the modules with an auxiliary network, from 0 (first) to 1 (last)."""
        return self.module / max(1, len(self.modules) - 2)

    def at(self, module: int) -> Self:
        """Return the site of module number `module`."""
        return replace(self, module=module)


class Criterion(nn.Module):
    """Computes a module's loss: here, the task's loss on the prediction of a head.

    All its parameters belong to the module's auxiliary network. For another loss, write a subclass
    that overrides `forward`. If your loss reads more tensors, add their names to `reads`.

    Args:
        head: Makes the prediction. Its arguments are the tensors named in `features`.
        features: Names of the tensors that the head reads, in order.
        task: Computes the loss of the prediction.

    Attributes:
        reads: Names of all tensors that the criterion reads, including targets.
        writes: Names of the tensors that the criterion makes for later modules; empty here.
        watches: A unit of a later module, or None. Before each training batch, `see` receives the
            unit's weights.
        further: Names of the predictions that `predict_further` returns; empty here.
    """

    def __init__(self, head: nn.Module, features: tuple[str, ...], task: Task) -> None:
        super().__init__()
        self.head, self.features, self.task = head, features, task
        self.reads: tuple[str, ...] = (*features, *task.targets)
        self.writes: tuple[str, ...] = ()
        self.watches: Watch | None = None
        self.further: tuple[str, ...] = ()

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the batch, a scalar, and the prediction.

        `values` has the tensors named in `reads`. This method must not change them in place.
        """
        prediction = self.head(*(values[name] for name in self.features))
        return self.task.loss(prediction, values), prediction

    def predict_further(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return more predictions, by name, which evaluations measure like `forward`'s prediction.

        The metric of the prediction NAME is reported as METRIC_NAME, such as `accuracy_probe`.
        """
        return {}

    def see(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Receive the weights of the unit in `watches`, before a training batch's forward pass.

        Copy the weights if you need them later, because they will be overwritten. Do not change
        them.

        Args:
            weights: The unit's parameters by name.
            steps: Number of optimizer steps after which the unit had these weights. It is below 0
                in the first lag - 1 batches, which get the initial weights.
        """


class LocalMethod(ABC):
    """A method that trains modules. Its constructor takes the keys of the method's YAML file.

    If a subclass is a dataclass, its fields are checked against their annotations.

    Attributes:
        changed: How the auxiliary networks differ from those of an earlier version of the method.
            The error message has this text if a run of that version cannot be resumed.
    """

    changed: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_options("local", self)

    @abstractmethod
    def criterion(self, site: Site) -> Criterion:
        """Return a module's auxiliary network and local loss.

        Not called for the model's last module.

        Raises:
            ConfigError: The method does not apply to this model or task.
        """

    def exports(self, site: Site) -> Sequence[Unit]:
        """Return the exports of a module, whose outputs the criteria of later modules can read.

        Exports run without gradients. They may have buffers, but no parameters. The first dimension
        of each output must be the batch. Not called for the model's last module.
        """
        return ()


def module_criterion(method: LocalMethod, site: Site) -> Criterion:
    """Return the method's criterion for a module; for the model's last module, the task's loss."""
    if site.is_last:
        return Criterion(nn.Identity(), (site.feature,), site.task)
    return method.criterion(site)


def module_exports(method: LocalMethod, site: Site) -> Sequence[Unit]:
    """Return the exports that the method adds to a module; the model's last module has none."""
    return () if site.is_last else method.exports(site)
