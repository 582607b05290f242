"""Which instruction uses which channel. The simulator, the wiring and the workers ask here.

A channel belongs to a route and a direction. A message needs a free slot and keeps it until it is
given back; messages are received in the order in which they were sent.
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
    """A way from one stage to another.

    Attributes:
        source: The stage that sends.
        target: The stage that receives.
        kind: What travels.
        chunk: The chunk for which it is; 0 for norms, which are a stage's.
        ahead: How many messages are in it before the first batch.
    """

    source: int
    target: int
    kind: Kind = "activations"
    chunk: int = 0
    ahead: int = 0


class Message(NamedTuple):
    """What a message is, as far as the order of instructions is concerned."""

    kind: str
    micro_batch: int = 0


def sends(stage: int, instruction: Instruction) -> tuple[Channel, Message] | None:
    """The message that the instruction puts into a channel, if it does."""
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
    """The message that the instruction waits for, if it does."""
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
    """The channel whose oldest held slot the instruction gives back, if it does."""
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
