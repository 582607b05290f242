"""The instructions that schedules are made of: what one stage does, as plain data.

A peer is the number of another stage, counted from 0. A chunk is one of the runs of units that a
stage holds, counted from 0 within the stage: under local learning each of its modules, else all
its units together. A micro-batch is a part of a batch, counted from 0.

Marks travel down the pipeline behind the batches, in the same channels, so that every stage acts on
them between the same two batches and nothing has to be drained.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NextBatch:
    """Take the next batch from the data and split it into micro-batches (stage 0)."""


@dataclass(frozen=True, slots=True)
class ReceiveActivations:
    """Wait for a micro-batch from a peer; its slot stays held until `Release`."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class SendActivations:
    """Copy what later stages read of a chunk's outputs into a slot, and hand it to a peer."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give the oldest held slot of the channel from a peer back."""

    peer: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Compute a chunk's outputs."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """A module's local loss, its backward, and its optimizer's step; its outputs are detached."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class LocalBackward:
    """A module's local loss and its backward, where others have a say in the step."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class LocalStep:
    """The step of a module's optimizer, after `LocalBackward`."""

    chunk: int


@dataclass(frozen=True, slots=True)
class StartAverage:
    """Average a chunk's gradients over the replicas of the stage.

    Stands before the last backward of the chunk, and each gradient goes as soon as it is complete.
    """

    chunk: int


@dataclass(frozen=True, slots=True)
class FinishAverage:
    """Wait until a chunk's gradients are the average of those of all replicas."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Loss:
    """The task's loss on the model's prediction (last stage)."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Backward:
    """From the loss, or from the gradients received, to the gradients of parameters and inputs."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class ReceiveGradients:
    """Wait for the gradients of a chunk's outputs; their slot stays held until `Release`."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class SendGradients:
    """Hand the gradients of a chunk's inputs to the peer that sent the inputs."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class AddNorms:
    """Add the squared gradient norms of the stage's units, in order, to the running sum."""


@dataclass(frozen=True, slots=True)
class ReceiveNorms:
    """Take the sum of squared norms from a peer; the slot is given back at once."""

    peer: int


@dataclass(frozen=True, slots=True)
class SendNorms:
    """Hand the sum of squared norms to a peer."""

    peer: int


@dataclass(frozen=True, slots=True)
class Step:
    """The optimizer's step for all of the stage's units, after all micro-batches."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A chunk's loss and metric on an evaluation batch: the local head's, or the model's own."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class ReceiveMark:
    """Take a mark from a peer; the slot is given back at once."""

    peer: int


@dataclass(frozen=True, slots=True)
class SendMark:
    """Hand the current mark to a peer."""

    peer: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Mark: the evaluation batches of a split are complete; report them."""

    split: str
    step: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Mark: save the state after this many optimizer steps."""

    step: int
    epoch: int


@dataclass(frozen=True, slots=True)
class End:
    """Mark: there is nothing more to do."""

    step: int


Mark = Evaluate | Checkpoint | End
Instruction = (
    NextBatch
    | ReceiveActivations
    | SendActivations
    | Release
    | Forward
    | LocalUpdate
    | LocalBackward
    | LocalStep
    | StartAverage
    | FinishAverage
    | Loss
    | Backward
    | ReceiveGradients
    | SendGradients
    | AddNorms
    | ReceiveNorms
    | SendNorms
    | Step
    | Measure
    | ReceiveMark
    | SendMark
    | Mark
)
