"""The instructions that a stage executes, as plain data.

Fields that several instructions have:
    chunk: Number of the chunk in the model, from 0.
    micro_batch: Index of the micro-batch within its batch, from 0.
    peer: Number of the stage at the other end of the channel.

A schedule yields only compute instructions: `Forward`, `Loss`, `Step`, and either `Backward` or its
two halves, `BackwardInput` and `BackwardWeight`. The passes (`ppll_cli.pipeline.passes`) add all
other instructions.

A message occupies a slot of its channel until the receiver frees the slot.

A mark asks every stage to report, save or end. Marks and batches are sent through the same
channels. So every stage acts on a mark between the same two batches.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["activations", "gradients", "norms", "weights"]
"""The kind of messages that a channel carries."""


@dataclass(frozen=True, slots=True)
class _OfChunk:
    chunk: int


@dataclass(frozen=True, slots=True)
class OfMicroBatch(_OfChunk):
    """Base class of the instructions that compute something for a chunk and a micro-batch."""

    micro_batch: int


@dataclass(frozen=True, slots=True)
class _WithPeer:
    peer: int


@dataclass(frozen=True, slots=True)
class _WithPeerAndChunk(_WithPeer):
    chunk: int


@dataclass(frozen=True, slots=True)
class _TensorMessage(_WithPeerAndChunk):
    micro_batch: int


@dataclass(frozen=True, slots=True)
class _WeightMessage(_WithPeerAndChunk):
    ahead: int


class Forward(OfMicroBatch):
    """Compute a chunk's outputs."""


class Loss(OfMicroBatch):
    """Compute the loss of a module, and the gradients of the chunk's outputs.

    The last module has the loss of the task; every other module has a local loss. `Loss` includes
    the backward pass of the module's auxiliary network.
    """


class Backward(OfMicroBatch):
    """Compute gradients of a chunk's parameters and inputs from the gradients of its outputs."""


class BackwardInput(OfMicroBatch):
    """Compute the gradients of a chunk's inputs: the first half of a split backward."""


class BackwardWeight(OfMicroBatch):
    """Compute the gradients of a chunk's parameters: the second half of a split backward."""


class Step(_OfChunk):
    """Do the optimizer step of a chunk, after the backwards of all micro-batches."""


Compute = Forward | Loss | Backward | BackwardInput | BackwardWeight | Step
"""The instructions that a schedule may yield for a training batch."""


@dataclass(frozen=True, slots=True)
class NextBatch:
    """Load the next batch, and split it into micro-batches."""


class ReceiveActivations(_TensorMessage):
    """Wait for a chunk's inputs. They stay in their slot until `Release`."""


class SendActivations(_TensorMessage):
    """Send to the stage of the next chunk all tensors that later chunks read."""


class ReceiveGradients(_TensorMessage):
    """Wait for the gradients of a chunk's outputs. They stay in their slot until `Release`."""


class SendGradients(_TensorMessage):
    """Send the gradients of a chunk's inputs to the stage that sent the inputs."""


@dataclass(frozen=True, slots=True)
class Release:
    """Free the slot of the oldest message in the channel from a peer to a chunk."""

    peer: int
    chunk: int
    kind: Kind


class StartAverage(_OfChunk):
    """Start averaging a chunk's gradients over the replicas of the stage.

    It comes before the chunk's last backward, so that each gradient can be sent to the other
    replicas as soon as it is complete.
    """


class FinishAverage(_OfChunk):
    """Wait until a chunk's gradients are averaged over all replicas."""


@dataclass(frozen=True, slots=True)
class AddNorms:
    """Write the squared gradient norms of the stage's units into a vector.

    The vector has an element for each unit of the model. The stages send it to one another, to
    compute the gradient norm of the whole model.
    """


class ReceiveNorms(_WithPeer):
    """Receive the vector of gradient norms (see `AddNorms`), and free its slot immediately."""


class SendNorms(_WithPeer):
    """Send the vector of gradient norms (see `AddNorms`)."""


class SendWeights(_WeightMessage):
    """Send a unit's weights to the stage of an earlier module, whose loss reads them.

    Attributes:
        chunk: The last chunk of the earlier module.
        ahead: Weights are sent this number of batches before a loss reads them. So the weights for
            the first `ahead` batches are sent before the training.
    """


class ReceiveWeights(_WeightMessage):
    """Receive the weights that a chunk's loss reads, and free their slot immediately."""


class ReadWeights(_OfChunk):
    """Let a chunk's loss read the weights of a unit of the same stage."""


class Measure(OfMicroBatch):
    """Compute the loss and the metrics of a chunk's module on an evaluation batch.

    The last module uses the model's own head; every other module uses its auxiliary network.
    """


class ReceiveMark(_WithPeerAndChunk):
    """Receive a mark from the channel of a chunk's inputs, and free its slot immediately."""


class SendMark(_WithPeerAndChunk):
    """Send the current mark through the channel of a chunk's outputs."""


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Mark: the evaluation of a split after `step` optimizer steps is done; report its results."""

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

Stream = list[Instruction]
"""The instructions that a stage executes for a batch or a mark, in order."""
