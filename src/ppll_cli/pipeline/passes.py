"""Passes, which turn a schedule's compute instructions into a stage's whole instruction stream.

A schedule says in which order a stage computes. Each pass adds one kind of instruction, in the same
way for every schedule. `training` and `evaluation` run the passes in their order.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ppll_cli.pipeline.instructions import (
    AddNorms,
    Backward,
    BackwardInput,
    BackwardWeight,
    FinishAverage,
    Forward,
    Instruction,
    Kind,
    Loss,
    Mark,
    Measure,
    NextBatch,
    ReadWeights,
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
    StartAverage,
    Step,
)
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.validation import validate, validate_evaluation

Stream = list[Instruction]


def training(place: Place, schedule: Schedule) -> Stream:
    """Return all instructions of a stage for one training batch.

    Raises:
        ScheduleError: The schedule's instructions do not train the stage's chunks.
    """
    stream: Stream = whole_backwards(place, validate(place, schedule.batch(place)))
    if place.replicas > 1:
        stream = averages(place, stream)
    if place.norms:
        stream = norms(place, stream)
    return weights(place, release(place, communicate(place, take_batch(place, stream))))


def evaluation(place: Place, schedule: Schedule) -> Stream:
    """Return all instructions of a stage for evaluation batches that come together.

    Each evaluation batch is treated as a micro-batch.

    Raises:
        ScheduleError: The schedule's instructions do not evaluate the stage's chunks.
    """
    computing = validate_evaluation(place, schedule.evaluation(place))
    return release(place, communicate(place, take_batch(place, computing)))


def mark(place: Place, what: Mark) -> Stream:
    """Return the instructions of a stage for a mark.

    A stage sends the mark on before it acts on it, so that the stages act on it in parallel. A mark
    arrives on the route to the stage's lowest chunk, where the stage looks for its next item.
    """
    layout = place.routes.layout
    lowest = [min(layout.of(stage)) for stage in range(layout.stages)]
    own = lowest[place.stage]
    stream: Stream = [ReceiveMark(layout.chunks[own - 1].stage, own)] if own else []
    for stage, chunk in enumerate(lowest):
        if chunk and layout.chunks[chunk - 1].stage == place.stage:
            stream.append(SendMark(stage, chunk - 1))
    return [*stream, what]


def whole_backwards(place: Place, stream: Iterable[Instruction]) -> Stream:
    """Join the two halves of a backward if none of the chunk's inputs takes a gradient."""
    into = place.routes.into
    found: Stream = []
    for instruction in stream:
        if isinstance(instruction, BackwardInput | BackwardWeight):
            chunk, micro_batch = instruction.chunk, instruction.micro_batch
            if not into[chunk].gradients:
                if isinstance(instruction, BackwardInput):
                    found.append(Backward(chunk, micro_batch))
                continue
        found.append(instruction)
    return found


def take_batch(place: Place, stream: Iterable[Instruction]) -> Stream:
    """Take each batch from the data on the stage that holds chunk 0."""
    return [*([NextBatch()] if 0 in place.chunks else []), *stream]


def averages(place: Place, stream: Sequence[Instruction]) -> Stream:
    """Average each chunk's gradients over the replicas, overlapped with computing them.

    The average of a chunk starts before its last backward. If the loss comes right before that
    backward, the average starts before the loss, because the loss completes the gradients of the
    auxiliary network. If no chunk of the stage waits for another one's gradients, the step moves
    behind the next chunk's backward, so that this backward hides the rest of the average.
    """
    chunks = place.chunks
    if all(place.routes.layout.chunks[chunk].ends_module for chunk in chunks):
        stream = _later_steps(stream)
    starts: dict[int, int] = {}
    for index, instruction in enumerate(stream):
        match instruction:
            case Backward(chunk, _) | BackwardWeight(chunk, _):
                before = stream[index - 1] if index else None
                follows = isinstance(before, Loss) and before.chunk == chunk
                starts[chunk] = index - 1 if follows else index
    begins = {index: chunk for chunk, index in starts.items()}
    found: Stream = []
    for index, instruction in enumerate(stream):
        if index in begins:
            found.append(StartAverage(begins[index]))
        if isinstance(instruction, Step):
            found.append(FinishAverage(instruction.chunk))
        found.append(instruction)
    return found


def _later_steps(stream: Iterable[Instruction]) -> Stream:
    """Move each step behind the next backward of another chunk, or to the end if there is none."""
    found: Stream = []
    waiting: list[Step] = []
    for instruction in stream:
        if isinstance(instruction, Step):
            waiting.append(instruction)
            continue
        found.append(instruction)
        if isinstance(instruction, Backward | BackwardWeight):
            late = [step for step in waiting if step.chunk != instruction.chunk]
            found += late
            waiting = [step for step in waiting if step not in late]
    return [*found, *waiting]


def norms(place: Place, stream: Sequence[Instruction]) -> Stream:
    """Exchange the squared gradient norms of all units before any step.

    A vector with one element per unit travels down the stages, each of which writes the norms of
    its own units. The full vector then travels back up. So every stage sums the same numbers in
    the same order, that of the units.
    """
    stage, last = place.stage, place.stages - 1
    steps = [each for each in stream if isinstance(each, Step)]
    ready = [each for each in stream if isinstance(each, FinishAverage)]
    found: Stream = [each for each in stream if not isinstance(each, Step | FinishAverage)]
    found += ready
    if stage > 0:
        found.append(ReceiveNorms(stage - 1))
    found.append(AddNorms())
    if stage < last:
        found += [SendNorms(stage + 1), ReceiveNorms(stage + 1)]
    if stage > 0:
        found.append(SendNorms(stage - 1))
    return [*found, *steps]


def communicate(place: Place, stream: Iterable[Instruction]) -> Stream:
    """Receive each message right before it is needed, and send each one right after it is made."""
    layout, routes = place.routes.layout, place.routes
    found: Stream = []
    for instruction in stream:
        match instruction:
            case Forward(chunk, micro_batch):
                if layout.crosses(chunk):
                    source = layout.chunks[chunk - 1].stage
                    found.append(ReceiveActivations(source, chunk, micro_batch))
                found.append(instruction)
                if layout.crosses(chunk + 1):
                    target = layout.chunks[chunk + 1].stage
                    found.append(SendActivations(target, chunk, micro_batch))
            case Backward(chunk, micro_batch) | BackwardInput(chunk, micro_batch):
                if layout.crosses(chunk + 1) and routes.out_of(chunk).gradients:
                    source = layout.chunks[chunk + 1].stage
                    found.append(ReceiveGradients(source, chunk, micro_batch))
                found.append(instruction)
                if layout.crosses(chunk) and routes.into[chunk].gradients:
                    target = layout.chunks[chunk - 1].stage
                    found.append(SendGradients(target, chunk, micro_batch))
            case _:
                found.append(instruction)
    return found


def release(place: Place, stream: Sequence[Instruction]) -> Stream:
    """Give each slot back after the last instruction that reads any tensor in it.

    A tensor that a chunk passes on unchanged to the next chunk of the same stage stays in its slot.
    """
    ends: dict[Release, list[int]] = defaultdict(list)
    for received, last in _last_reads(place, stream).items():
        kind: Kind = "activations" if isinstance(received, ReceiveActivations) else "gradients"
        ends[Release(received.peer, received.chunk, kind)].append(last)
    after: dict[int, Stream] = defaultdict(list)
    for back, indices in sorted(ends.items(), key=lambda item: item[0].kind, reverse=True):
        for index in indices:
            after[index].append(back)
    return [each for index, own in enumerate(stream) for each in (own, *after[index])]


def weights(place: Place, stream: Iterable[Instruction]) -> Stream:
    """Send watched weights after each step, and receive them before the watching chunk's forward.

    Evaluation moves no weights: a loss evaluates with those that the last training batch gave it.
    """
    chunks, watches = place.routes.layout.chunks, place.routes.watches
    holders = {watcher: place.routes.watched(watcher) for watcher in watches}
    found: Stream = []
    for instruction in stream:
        if isinstance(instruction, Forward) and instruction.micro_batch == 0:
            chunk = instruction.chunk
            if chunk in watches:
                source, ahead = chunks[holders[chunk]].stage, watches[chunk].ahead
                here = source == place.stage
                found.append(ReadWeights(chunk) if here else ReceiveWeights(source, chunk, ahead))
        found.append(instruction)
        if isinstance(instruction, Step):
            for watcher, holder in holders.items():
                target = chunks[watcher].stage
                if holder == instruction.chunk and target != place.stage:
                    found.append(SendWeights(target, watcher, watches[watcher].ahead))
    return found


def _last_reads(
    place: Place, stream: Sequence[Instruction]
) -> dict[ReceiveActivations | ReceiveGradients, int]:
    """Return the index of the last instruction that reads each received message."""
    routes = place.routes
    last: dict[ReceiveActivations | ReceiveGradients, int] = {}
    # The message that holds a tensor, by chunk, micro-batch and name.
    slots: dict[tuple[int, int, str], ReceiveActivations] = {}
    gradients: dict[tuple[int, int, str], ReceiveGradients] = {}

    def reads(index: int, chunk: int, micro_batch: int, names: Iterable[str]) -> None:
        for name in names:
            if (slot := slots.get((chunk, micro_batch, name))) is not None:
                last[slot] = index

    def reads_gradients(index: int, chunk: int, micro_batch: int, names: Iterable[str]) -> None:
        for name in names:
            if (slot := gradients.get((chunk, micro_batch, name))) is not None:
                last[slot] = index

    def through(chunk: int) -> frozenset[str]:
        # If a chunk does not change a tensor, its gradient may be the received tensor itself.
        return routes.passing(chunk) & {*routes.out_of(chunk).gradients}

    for index, instruction in enumerate(stream):
        match instruction:
            case ReceiveActivations(_, chunk, m):
                last[instruction] = index
                slots.update({(chunk, m, name): instruction for name in routes.into[chunk].names})
            case ReceiveGradients(_, chunk, m):
                last[instruction] = index
                names = routes.out_of(chunk).gradients
                gradients.update({(chunk, m, name): instruction for name in names})
            case Forward(chunk, m):
                if (chunk - 1) in place.chunks:  # handed over inside the stage
                    for name in routes.into[chunk].names:
                        if name in routes.passing(chunk - 1) and (
                            slot := slots.get((chunk - 1, m, name))
                        ):
                            slots[chunk, m, name] = slot
                reads(index, chunk, m, routes.reads[chunk])
            case Loss(chunk, m) | Measure(chunk, m):
                reads(index, chunk, m, routes.reads[chunk])
            case SendActivations(_, chunk, m):
                reads(index, chunk, m, routes.passing(chunk))
            case Backward(chunk, m) | BackwardInput(chunk, m) | BackwardWeight(chunk, m):
                reads(index, chunk, m, routes.reads[chunk])
                if (chunk + 1) in place.chunks:  # handed over inside the stage
                    for name in through(chunk + 1):
                        if received := gradients.get((chunk + 1, m, name)):
                            gradients[chunk, m, name] = received
                reads_gradients(index, chunk, m, routes.out_of(chunk).gradients)
            case SendGradients(_, chunk, m):
                reads_gradients(index, chunk, m, through(chunk))
    return last
