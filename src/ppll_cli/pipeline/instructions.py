"""The instructions that a stage executes, as plain data.

Fields that several instructions have:
    chunk: Number of the chunk, counted through the whole model from 0. A chunk is a run of units
        that is computed in one go.
    micro_batch: Index of the micro-batch within its batch, from 0.
    peer: Number of the stage at the other end of the channel.

A schedule yields only compute instructions: `Forward`, `Loss`, `Backward` (or its two halves) and
`Step`. The passes (`ppll_cli.pipeline.passes`) add all other instructions.

Marks travel through the same channels as the batches and in order with them. So every stage acts on
a mark between the same two batches, and the pipeline is never drained.
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
    """Compute the loss at the end of a module, and its gradients for the chunk's outputs.

    The last module has the loss of the task, every other module a local loss. `Loss` includes the
    backward pass of the module's auxiliary network.
    """

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Backward:
    """Compute the gradients of a chunk's parameters and inputs from those of its outputs."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class BackwardInput:
    """Compute the gradients of a chunk's inputs: the first half of a split backward."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class BackwardWeight:
    """Compute the gradients of a chunk's parameters: the second half of a split backward."""

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Step:
    """Run the optimizer's step for a chunk, after the backwards of all micro-batches."""

    chunk: int


Compute = Forward | Loss | Backward | BackwardInput | BackwardWeight | Step
"""The instructions that a schedule may yield for a training batch."""


@dataclass(frozen=True, slots=True)
class NextBatch:
    """Take the next batch from the data and split it into micro-batches."""


@dataclass(frozen=True, slots=True)
class ReceiveActivations:
    """Wait for a chunk's inputs; the stage holds their slot until `Release`."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class SendActivations:
    """Copy all tensors that later chunks read into a slot and send it to the next chunk's stage."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class ReceiveGradients:
    """Wait for the gradients of a chunk's outputs; the stage holds their slot until `Release`."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class SendGradients:
    """Send the gradients of a chunk's inputs to the stage that sent the inputs."""

    peer: int
    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give back the oldest slot that the stage holds of the channel from a peer to a chunk."""

    peer: int
    chunk: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class StartAverage:
    """Start averaging a chunk's gradients over the replicas of the stage.

    This comes before the chunk's last backward: each gradient is sent as soon as it is complete.
    """

    chunk: int


@dataclass(frozen=True, slots=True)
class FinishAverage:
    """Wait until a chunk's gradients are averaged over all replicas."""

    chunk: int


@dataclass(frozen=True, slots=True)
class AddNorms:
    """Write the squared gradient norms of the stage's units into the vector of all units' norms."""


@dataclass(frozen=True, slots=True)
class ReceiveNorms:
    """Receive the vector of squared norms and give its slot back at once."""

    peer: int


@dataclass(frozen=True, slots=True)
class SendNorms:
    """Send the vector of squared norms."""

    peer: int


@dataclass(frozen=True, slots=True)
class SendWeights:
    """Send a unit's weights to a chunk of another stage that watches the unit.

    Attributes:
        peer: The stage of the watching chunk.
        chunk: The watching chunk.
        ahead: Number of batches between sending the weights and reading them. The channel holds
            this many messages before the first batch.
    """

    peer: int
    chunk: int
    ahead: int


@dataclass(frozen=True, slots=True)
class ReceiveWeights:
    """Receive the weights that a chunk watches and give their slot back at once."""

    peer: int
    chunk: int
    ahead: int


@dataclass(frozen=True, slots=True)
class ReadWeights:
    """Read the weights that a chunk watches from a unit on its own stage."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Measure:
    """Compute a chunk's loss and metric on an evaluation batch.

    The last module is measured by the model's own head, every other one by its auxiliary network.
    """

    chunk: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class ReceiveMark:
    """Receive a mark from the channel of a chunk's inputs and give its slot back at once."""

    peer: int
    chunk: int


@dataclass(frozen=True, slots=True)
class SendMark:
    """Send the current mark through the channel of a chunk's outputs."""

    peer: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Mark: all evaluation batches of a split have passed; report the results."""

    split: str
    step: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Mark: save the state after `step` optimizer steps."""

    step: int
    epoch: int


@dataclass(frozen=True, slots=True)
class End:
    """Mark: the run ends after `step` optimizer steps."""

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
