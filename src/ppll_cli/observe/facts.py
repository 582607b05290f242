"""What is known of a run before it starts, as it is shown to users."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class StageFacts:
    """A stage, or a replica of one.

    Attributes:
        name: Its number, and the replica's if there are several.
        device: Its device.
        units: Names of its units, in order.
        modules: Numbers of its modules.
        params: Number of parameters, with auxiliary networks.
        flops: FLOPs of one sample's forward, with auxiliary networks.
        slots: Messages for which its incoming channels of activations have room; 0 for the first
            stage.
        runs: Numbers of units in each run of neighbouring units, if there are several runs.
    """

    name: str
    device: str
    units: Sequence[str]
    modules: Sequence[int]
    params: int
    flops: int
    slots: int
    runs: Sequence[int] = ()

    @property
    def units_by_run(self) -> list[Sequence[str]]:
        """The names of the units, split where other stages' units lie between them."""
        ends = list(accumulate(self.runs or [len(self.units)]))
        return [self.units[start:end] for start, end in pairwise([0, *ends])]


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before it starts.

    Attributes:
        metric: Name of the task's metric.
        epochs: Number of epochs.
        start: Optimizer steps done before it was resumed; else 0.
        steps: Optimizer steps at its end.
        steps_per_epoch: Optimizer steps of an epoch.
        batch_size: Samples of a training batch.
        replicas: Number of replicas of each stage.
        stages: Its stages, or their replicas.
        reference: Name of a method without training that is measured for comparison, if any.
    """

    metric: str
    epochs: int
    start: int
    steps: int
    steps_per_epoch: int
    batch_size: int
    replicas: int
    stages: Sequence[StageFacts]
    reference: str | None = None
