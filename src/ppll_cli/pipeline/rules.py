"""Says which channel and message an instruction uses, for the simulator and the workers."""

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
    """Identifies a channel, from stage `source` to stage `target`.

    `chunk` is the number of the chunk that receives; 0 for gradient norms, which a stage receives.
    `ahead` is the number of messages that are sent before the first batch.
    """

    source: int
    target: int
    kind: Kind = "activations"
    chunk: int = 0
    ahead: int = 0


class Message(NamedTuple):
    """Identifies a message, so that the simulator can compare sent and expected messages."""

    kind: str
    micro_batch: int = 0


def sends(stage: int, instruction: Instruction) -> tuple[Channel, Message] | None:
    """Return channel and message of an instruction that sends; None for other instructions."""
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
    """Return channel and message of an instruction that receives; None for other instructions."""
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
    """Return the channel of an instruction that frees a slot; None for other instructions."""
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
