"""What is known of a run before it starts, for those who show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class StageFacts:
    """A stage, or a replica of one.

    Attributes:
        name: Its number, and the replica's.
        device: Where it is.
        units: Names of its units, in order.
        modules: Numbers of its modules.
        params: Parameters, those of auxiliary networks included.
        flops: Of a sample's forward, auxiliary networks included.
        slots: Messages that fit on the way to it; 0 for the first stage.
        runs: How many units each run of neighbouring units has, where there are several runs.
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
        """The names of the units, apart where others stand between them in the model."""
        ends = list(accumulate(self.runs or [len(self.units)]))
        return [self.units[start:end] for start, end in pairwise([0, *ends])]


@dataclass(frozen=True)
class RunFacts:
    """A run.

    Attributes:
        metric: Name of the task's metric.
        epochs: How many it has.
        start: Optimizer steps that were done before.
        steps: Optimizer steps at its end.
        steps_per_epoch: Optimizer steps of an epoch.
        batch_size: Samples of a training batch.
        replicas: Of each stage.
        stages: Its stages; where these have replicas, each of those.
        reference: What needs no training and is measured beside the model; None: nothing.
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
