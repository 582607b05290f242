"""Rules that say which instruction uses which channel, for the simulator and the workers.

A channel belongs to one direction of a route. A message needs a free slot, and occupies it until
the receiver gives the slot back. Messages are received in the order in which they were sent.
"""

from typing import NamedTuple

from ppll_cli.pipeline.instructions import (
    Instruction,
    Kind,
    ReceiveActivations,
    ReceiveGradients,
    ReceiveMark,
    ReceiveNorms,
    ReceiveWeights,
    Release,
    SendActivations,
    SendGradients,
    SendMark,
    SendNorms,
    SendWeights,
)


class Channel(NamedTuple):
    """A channel between two stages, identified by what it carries.

    Attributes:
        source: The stage that sends.
        target: The stage that receives.
        kind: What the channel carries.
        chunk: The chunk that receives; 0 for norms, which belong to a stage.
        ahead: How many messages the channel holds before the first batch.
    """

    source: int
    target: int
    kind: Kind = "activations"
    chunk: int = 0
    ahead: int = 0


class Message(NamedTuple):
    """The identity of a message, by which a receiver's order is compared with the sender's."""

    kind: str
    micro_batch: int = 0


def sends(stage: int, instruction: Instruction) -> tuple[Channel, Message] | None:
    """Return the message that an instruction sends and its channel; None if it sends none."""
    match instruction:
        case SendActivations(peer, chunk, micro_batch):
            channel = Channel(stage, peer, "activations", chunk + 1)
            return channel, Message("activations", micro_batch)
        case SendGradients(peer, chunk, micro_batch):
            channel = Channel(stage, peer, "gradients", chunk - 1)
            return channel, Message("gradients", micro_batch)
        case SendNorms(peer):
            return Channel(stage, peer, "norms"), Message("norms")
        case SendWeights(peer, chunk, ahead):
            return Channel(stage, peer, "weights", chunk, ahead), Message("weights")
        case SendMark(peer, chunk):
            return Channel(stage, peer, "activations", chunk + 1), Message("mark")
    return None


def receives(stage: int, instruction: Instruction) -> tuple[Channel, Message] | None:
    """Return the message that an instruction waits for and its channel; None if there is none."""
    match instruction:
        case ReceiveActivations(peer, chunk, micro_batch):
            channel = Channel(peer, stage, "activations", chunk)
            return channel, Message("activations", micro_batch)
        case ReceiveGradients(peer, chunk, micro_batch):
            channel = Channel(peer, stage, "gradients", chunk)
            return channel, Message("gradients", micro_batch)
        case ReceiveNorms(peer):
            return Channel(peer, stage, "norms"), Message("norms")
        case ReceiveWeights(peer, chunk, ahead):
            return Channel(peer, stage, "weights", chunk, ahead), Message("weights")
        case ReceiveMark(peer, chunk):
            return Channel(peer, stage, "activations", chunk), Message("mark")
    return None


def gives_back(stage: int, instruction: Instruction) -> Channel | None:
    """Return the channel whose oldest held slot an instruction gives back, if there is one."""
    match instruction:
        case Release(peer, chunk, kind):
            return Channel(peer, stage, kind, chunk)
        case ReceiveNorms(peer):
            return Channel(peer, stage, "norms")
        case ReceiveWeights(peer, chunk, ahead):
            return Channel(peer, stage, "weights", chunk, ahead)
        case ReceiveMark(peer, chunk):
            return Channel(peer, stage, "activations", chunk)
    return None
