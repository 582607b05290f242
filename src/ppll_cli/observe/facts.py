"""Facts about a run that are known before it starts and shown to users."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageFacts:
    """Facts about a stage or, if stages have replicas, about one replica.

    Attributes:
        name: The number of the stage, and of the replica if there are several.
        units: The names of the units, in lists of consecutive units. A stage with several chunks
            may have several lists.
        modules: Numbers of the modules that are at least partly on the stage.
        params: Number of parameters, including auxiliary networks.
        flops: FLOPs of one sample's forward pass, including auxiliary networks.
        slots: Largest number of activation messages that can wait for the stage; 0 for the first.
    """

    name: str
    device: str
    units: Sequence[Sequence[str]]
    modules: Sequence[int]
    params: int
    flops: int
    slots: int


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that are known before it starts.

    Attributes:
        start: Optimizer steps done before the run was resumed; 0 for a new run.
        steps: Optimizer steps at the end of the run.
        stages: One entry for each stage or, with replicas, for each replica of a stage.
        reference: Name of a method without training, such as bicubic enlargement, whose metric is
            shown for comparison; None if there is none.
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
