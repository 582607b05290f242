"""Says which channel and message an instruction uses, for the simulator and the workers."""

from typing import NamedTuple

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Instruction, Kind


class Channel(NamedTuple):
    """Identifies a channel, from stage `source` to stage `target`.

    `chunk` is the number of the chunk that receives; 0 for a channel of gradient norms. `ahead` is
    the number of messages that are sent before the first batch; only weights have such messages.
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
    received: Instruction  # the instruction by which the other stage receives the message
    match instruction:
        case do.SendActivations(peer, chunk, micro_batch):
            received = do.ReceiveActivations(stage, chunk + 1, micro_batch)
        case do.SendGradients(peer, chunk, micro_batch):
            received = do.ReceiveGradients(stage, chunk - 1, micro_batch)
        case do.SendNorms(peer):
            received = do.ReceiveNorms(stage)
        case do.SendWeights(peer, chunk, ahead):
            received = do.ReceiveWeights(stage, chunk, ahead)
        case do.SendMark(peer, chunk):
            received = do.ReceiveMark(stage, chunk + 1)
        case _:
            return None
    return receives(peer, received)


def receives(stage: int, instruction: Instruction) -> tuple[Channel, Message] | None:
    """Return channel and message of an instruction that receives; None for other instructions."""
    match instruction:
        case do.ReceiveActivations(peer, chunk, micro_batch):
            message = Message("activations", micro_batch)
            return Channel(peer, stage, "activations", chunk), message
        case do.ReceiveGradients(peer, chunk, micro_batch):
            return Channel(peer, stage, "gradients", chunk), Message("gradients", micro_batch)
        case do.ReceiveNorms(peer):
            return Channel(peer, stage, "norms"), Message("norms")
        case do.ReceiveWeights(peer, chunk, ahead):
            return Channel(peer, stage, "weights", chunk, ahead), Message("weights")
        case do.ReceiveMark(peer, chunk):
            return Channel(peer, stage, "activations", chunk), Message("mark")
    return None


def gives_back(stage: int, instruction: Instruction) -> Channel | None:
    """Return the channel in which an instruction frees a slot; None if it frees none."""
    match instruction:
        case do.Release(peer, chunk, kind):
            return Channel(peer, stage, kind, chunk)
        case do.ReceiveNorms() | do.ReceiveWeights() | do.ReceiveMark():
            found = receives(stage, instruction)
            return found and found[0]
    return None
