"""What each instruction needs before it can run. The simulator and the checks ask here.

Two kinds of rule. Within a stage, an instruction needs what earlier instructions made (`check`).
Between stages, a channel leads from each sender to each receiver (`sends`, `receives`,
`gives_back`): a message needs a free slot, keeps it until it is given back, and messages are
received in the order in which they were sent.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ppll_cli.errors import ScheduleError
from ppll_cli.schedules.instructions import (
    Backward,
    FinishAverage,
    Forward,
    Instruction,
    LocalBackward,
    LocalStep,
    LocalUpdate,
    Loss,
    Measure,
    NextBatch,
    ReceiveActivations,
    ReceiveGradients,
    ReceiveMark,
    ReceiveNorms,
    Release,
    SendActivations,
    SendGradients,
    SendMark,
    SendNorms,
    StartAverage,
    Step,
)


class Channel(NamedTuple):
    """A directed edge between two stages."""

    source: int
    target: int


class Message(NamedTuple):
    """What a message is, as far as the order of instructions is concerned."""

    kind: str
    micro_batch: int = 0


def sends(stage: int, instruction: Instruction) -> tuple[Channel, Message] | None:
    """The message that the instruction puts into a channel, if it does."""
    match instruction:
        case SendActivations(peer, _, micro_batch):
            return Channel(stage, peer), Message("activations", micro_batch)
        case SendGradients(peer, _, micro_batch):
            return Channel(stage, peer), Message("gradients", micro_batch)
        case SendNorms(peer):
            return Channel(stage, peer), Message("norms")
        case SendMark(peer):
            return Channel(stage, peer), Message("mark")
    return None


def receives(stage: int, instruction: Instruction) -> tuple[Channel, Message] | None:
    """The message that the instruction waits for, if it does."""
    match instruction:
        case ReceiveActivations(peer, _, micro_batch):
            return Channel(peer, stage), Message("activations", micro_batch)
        case ReceiveGradients(peer, _, micro_batch):
            return Channel(peer, stage), Message("gradients", micro_batch)
        case ReceiveNorms(peer):
            return Channel(peer, stage), Message("norms")
        case ReceiveMark(peer):
            return Channel(peer, stage), Message("mark")
    return None


def gives_back(stage: int, instruction: Instruction) -> Channel | None:
    """The channel whose oldest held slot the instruction gives back, if it does."""
    match instruction:
        case Release(peer) | ReceiveNorms(peer) | ReceiveMark(peer):
            return Channel(peer, stage)
    return None


def check(stream: Iterable[Instruction]) -> None:
    """Check that each instruction of one stage finds what it computes with.

    Raises:
        ScheduleError: It does not; the message names the instruction and what is missing.
    """
    available: set[tuple[str, int, int]] = set()
    waiting: set[tuple[int, int]] = set()  # forwards whose backward has not run
    averages: dict[int, bool] = {}  # chunks whose gradients are averaged, and whether they are
    batch = False

    def need(instruction: Instruction, found: bool, what: str) -> None:
        if not found:
            raise ScheduleError(f"{instruction} needs {what} before it")

    for instruction in stream:
        match instruction:
            case NextBatch():
                batch = True
                available.clear()
            case ReceiveActivations(_, chunk, micro_batch):
                # What this micro-batch had from here on was of the batch before.
                available = {key for key in available if key[1] < chunk or key[2] != micro_batch}
                available.add(("input", chunk, micro_batch))
            case Forward(chunk, micro_batch):
                found = (
                    ("output", chunk - 1, micro_batch) in available
                    or ("input", chunk, micro_batch) in available
                    or (chunk == 0 and batch)
                )
                need(instruction, found, "its inputs")
                begun = averages.get(chunk) is False
                need(instruction, not begun, "the end of the average that its Backward would miss,")
                available.add(("output", chunk, micro_batch))
                waiting.add((chunk, micro_batch))
            case SendActivations(_, chunk, micro_batch):
                need(instruction, ("output", chunk, micro_batch) in available, "its Forward")
            case Loss(chunk, micro_batch):
                need(instruction, (chunk, micro_batch) in waiting, "its Forward")
                available.add(("gradient", chunk, micro_batch))
            case LocalUpdate(chunk, micro_batch) | Measure(chunk, micro_batch):
                need(instruction, (chunk, micro_batch) in waiting, "its Forward")
                waiting.remove((chunk, micro_batch))
            case LocalBackward(chunk, micro_batch):
                need(instruction, (chunk, micro_batch) in waiting, "its Forward")
                waiting.remove((chunk, micro_batch))
                available.add(("local gradient", chunk, 0))
            case LocalStep(chunk):
                need(instruction, ("local gradient", chunk, 0) in available, "its LocalBackward")
                available.remove(("local gradient", chunk, 0))
                need(instruction, averages.pop(chunk, True), "its FinishAverage")
            case StartAverage(chunk):
                left = sorted(key for key in waiting if key[0] == chunk)
                need(instruction, len(left) == 1, "all of its chunk's Backwards but one")
                averages[chunk] = False
            case FinishAverage(chunk):
                need(instruction, averages.get(chunk) is False, "its StartAverage")
                left = sorted(key for key in waiting if key[0] == chunk)
                need(instruction, not left, f"the Backward of {left}")
                averages[chunk] = True
            case ReceiveGradients(_, chunk, micro_batch):
                available.add(("gradient", chunk, micro_batch))
            case Backward(chunk, micro_batch):
                need(instruction, (chunk, micro_batch) in waiting, "its Forward")
                found = ("gradient", chunk, micro_batch) in available
                need(instruction, found, "its Loss or ReceiveGradients")
                waiting.remove((chunk, micro_batch))
                available.remove(("gradient", chunk, micro_batch))
                available.add(("input gradient", chunk, micro_batch))
            case SendGradients(_, chunk, micro_batch):
                found = ("input gradient", chunk, micro_batch) in available
                need(instruction, found, "its Backward")
            case Step():
                need(instruction, not waiting, f"the Backward of {sorted(waiting)}")
                need(instruction, all(averages.values()), "its FinishAverage")
                averages.clear()
                available.clear()
