"""The instructions that a stage executes, as plain data.

A chunk is a run of units that is computed in one go; chunks are counted through the whole model,
from 0. A micro-batch is a part of a batch, counted from 0. A peer is the number of another stage.

A schedule yields compute instructions alone: `Forward`, `Loss`, `Backward` (or its two halves) and
`Step`. The passes (`ppll_cli.pipeline.passes`) add the rest.

Marks travel down the pipeline behind the batches, in the same channels. So every stage acts on a
mark between the same two batches, and nothing has to be drained.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["activations", "gradients", "norms", "weights"]
"""What a channel carries."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Compute a chunk's outputs."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Compute the loss at the end of a module, and its gradients down to the chunk's outputs.

    The loss is the task's at the model's end, and a local one at the end of any other module. The
    backward pass of an auxiliary network belongs to it.
    """

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Backward:
    """From the gradients of a chunk's outputs to those of its parameters and inputs."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class BackwardInput:
    """The half of a backward that computes the gradients of the inputs."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class BackwardWeight:
    """The half of a backward that computes the gradients of the parameters."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Step:
    """The optimizer's step for a chunk, after the backwards of all micro-batches."""

    chunk: int


Compute = Forward | Loss | Backward | BackwardInput | BackwardWeight | Step
"""What a schedule may yield."""


@dataclass(frozen=True, slots=True)
class NextBatch:
    """Take the next batch from the data and split it into micro-batches."""


@dataclass(frozen=True, slots=True)
class ReceiveActivations:
    """Wait for a chunk's inputs from a peer; their slot stays held until `Release`."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class SendActivations:
    """Copy what later chunks read of a chunk's outputs into a slot, and hand it to a peer."""

    peer: int
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
class Release:
    """Give the oldest held slot of the channel that leads from a peer to a chunk back."""

    peer: int
    chunk: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class StartAverage:
    """Average a chunk's gradients over the replicas of the stage.

    It stands before the last backward of the chunk: each gradient leaves when it is complete.
    """

    chunk: int


@dataclass(frozen=True, slots=True)
class FinishAverage:
    """Wait until a chunk's gradients are the average of those of all replicas."""

    chunk: int


@dataclass(frozen=True, slots=True)
class AddNorms:
    """Write the squared gradient norm of each of the stage's units into the vector of all."""


@dataclass(frozen=True, slots=True)
class ReceiveNorms:
    """Take the vector of squared norms from a peer; the slot is given back at once."""

    peer: int


@dataclass(frozen=True, slots=True)
class SendNorms:
    """Hand the vector of squared norms to a peer."""

    peer: int


@dataclass(frozen=True, slots=True)
class SendWeights:
    """Hand a unit's weights to a chunk of another stage that watches the unit.

    Attributes:
        peer: The stage of the chunk that watches.
        chunk: The chunk that watches.
        ahead: How many batches later the chunk reads them. So many messages are in the channel
            before the first batch.
    """

    peer: int
    chunk: int
    ahead: int


@dataclass(frozen=True, slots=True)
class ReceiveWeights:
    """Show a chunk the weights that it watches, from a peer; the slot is given back at once."""

    peer: int
    chunk: int
    ahead: int


@dataclass(frozen=True, slots=True)
class ReadWeights:
    """Show a chunk the weights that it watches, of a unit on its own stage."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Measure:
    """A chunk's loss and metric on an evaluation batch: the local head's, or the model's own."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class ReceiveMark:
    """Take a mark from a peer, before a chunk's inputs; the slot is given back at once."""

    peer: int
    chunk: int


@dataclass(frozen=True, slots=True)
class SendMark:
    """Hand the current mark to a peer, behind a chunk's outputs."""

    peer: int
    chunk: int


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
    Compute
    | NextBatch
    | ReceiveActivations
    | SendActivations
    | ReceiveGradients
    | SendGradients
    | Release
    | StartAverage
    | FinishAverage
    | AddNorms
    | ReceiveNorms
    | SendNorms
    | SendWeights
    | ReceiveWeights
    | ReadWeights
    | Measure
    | ReceiveMark
    | SendMark
    | Mark
)
