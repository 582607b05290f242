"""Adds averages over replicas and an exchange of gradient norms to a stage's instructions.

The public functions are passes; see `passes.py`.
"""

from collections.abc import Iterable, Sequence

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.schedule import Place


def whole_backwards(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Use whole backwards, instead of two halves, for each chunk whose input needs no gradient.

    For such a chunk, `Backward` takes the place of each `BackwardInput`, and each `BackwardWeight`
    is left out.
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
    """Add instructions that average each chunk's gradients over the replicas of the stage.

    `StartAverage` comes before the chunk's last backward. If the chunk's loss comes directly before
    this backward, `StartAverage` comes before the loss. Then each gradient is averaged as soon as
    it is complete. `FinishAverage` comes before the chunk's optimizer step.

    If every chunk of the stage computes its own loss, each optimizer step is moved behind the next
    backward of another chunk. So averaging continues during that backward.
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
                # Before the loss, because it completes the auxiliary network's gradients.
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
    """Add an exchange of gradient norms, so that each stage knows the norm of the whole model.

    A vector with one element per unit goes from the first stage to the last and back. On its way to
    the last stage, each stage writes the squared norms of its units into it. All optimizer steps
    are moved behind this exchange.
    """
    # Every stage sums the same elements in the order of the units, so all get the same norm.
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
