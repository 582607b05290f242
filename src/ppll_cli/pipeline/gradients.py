"""Adds averages over replicas and an exchange of gradient norms to a stage's instructions.

The public functions are passes; see `passes.py`.
"""

from collections.abc import Iterable, Sequence

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.schedule import Place


def whole_backwards(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Replace the two halves of a backward by one `Backward` if a chunk's input needs no gradient.

    The halves are `BackwardInput`, which such a chunk does not need, and `BackwardWeight`.
    """
    into = place.routes.into
    found: Stream = []
    for instruction in stream:
        if isinstance(instruction, do.BackwardInput | do.BackwardWeight):
            chunk, micro_batch = instruction.chunk, instruction.micro_batch
            if not into[chunk].gradients:
                if isinstance(instruction, do.BackwardInput):
                    found.append(do.Backward(chunk, micro_batch))
                continue
        found.append(instruction)
    return found


def averages(place: Place, stream: Sequence[do.Instruction]) -> Stream:
    """Add instructions that average each chunk's gradients over the replicas.

    After `StartAverage`, each gradient of the chunk is averaged as soon as it is complete. So
    `StartAverage` comes before the chunk's last backward, which completes the gradients. If the
    chunk's loss comes right before this backward, `StartAverage` comes before the loss, because the
    loss already completes the gradients of the auxiliary network.

    If every chunk of the stage computes its own loss, a chunk's optimizer step is moved behind the
    next backward of another chunk, so that averaging continues during that backward.
    """
    chunks = place.chunks
    if all(place.routes.layout.chunks[chunk].ends_module for chunk in chunks):
        stream = _later_steps(stream)
    starts: dict[int, int] = {}
    for index, instruction in enumerate(stream):
        match instruction:
            case do.Backward(chunk, _) | do.BackwardWeight(chunk, _):
                before = stream[index - 1] if index else None
                follows = isinstance(before, do.Loss) and before.chunk == chunk
                starts[chunk] = index - 1 if follows else index
    begins = {index: chunk for chunk, index in starts.items()}
    found: Stream = []
    for index, instruction in enumerate(stream):
        if index in begins:
            found.append(do.StartAverage(begins[index]))
        if isinstance(instruction, do.Step):
            found.append(do.FinishAverage(instruction.chunk))
        found.append(instruction)
    return found


def _later_steps(stream: Iterable[do.Instruction]) -> Stream:
    """Move each optimizer step behind the next backward of another chunk, or else to the end."""
    found: Stream = []
    waiting: list[do.Step] = []
    for instruction in stream:
        if isinstance(instruction, do.Step):
            waiting.append(instruction)
            continue
        found.append(instruction)
        if isinstance(instruction, do.Backward | do.BackwardWeight):  # of another chunk
            found += waiting
            waiting = []
    return [*found, *waiting]


def norms(place: Place, stream: Sequence[do.Instruction]) -> Stream:
    """Let the stages exchange gradient norms, and do all optimizer steps after this exchange.

    Each optimizer step needs the gradient norm of the whole model. A vector with one element per
    unit is sent from the first stage to the last, and each stage writes the squared norms of its
    units into it. Then the complete vector is sent back to the first stage. Every stage sums the
    same elements in the order of the units, so all stages get the same norm.
    """
    stage, last = place.stage, place.stages - 1
    steps = [each for each in stream if isinstance(each, do.Step)]
    ready = [each for each in stream if isinstance(each, do.FinishAverage)]
    found: Stream = [each for each in stream if not isinstance(each, do.Step | do.FinishAverage)]
    found += ready
    if stage > 0:
        found.append(do.ReceiveNorms(stage - 1))
    found.append(do.AddNorms())
    if stage < last:
        found += [do.SendNorms(stage + 1), do.ReceiveNorms(stage + 1)]
    if stage > 0:
        found.append(do.SendNorms(stage - 1))
    return [*found, *steps]
