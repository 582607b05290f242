"""Passes: what makes a stage's whole stream of a schedule's compute instructions.

A schedule says in which order a stage computes. Each pass adds one thing to the list, in the same
way for every schedule, and `training` runs all of them in their order.
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
    """The instructions of a stage for a training batch.

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
    """The instructions of a stage for evaluation batches, each a micro-batch."""
    computing = validate_evaluation(place, schedule.evaluation(place))
    return release(place, communicate(place, take_batch(place, computing)))


def mark(place: Place, what: Mark) -> Stream:
    """A mark through a stage: handed on first, so that the stages act on it side by side.

    It comes on the route to a stage's lowest chunk, where a stage looks for what comes next.
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
    """Do not split the backward of a chunk none of whose inputs takes a gradient."""
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
    """Batches enter where chunk 0 is."""
    return [*([NextBatch()] if 0 in place.chunks else []), *stream]


def averages(place: Place, stream: Sequence[Instruction]) -> Stream:
    """Average a chunk's gradients over the replicas while they are computed, before its step.

    An average starts before the last backward of its chunk, or before the loss where that comes
    right before it: an auxiliary network's gradients are complete after the loss. It may take as
    long as the next chunk's backward: where no chunk waits for another one's gradients, the step
    moves behind that.
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
    """Move each step behind the next backward of another chunk, or to the end."""
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
    """Exchange the squared norms of all units' gradients before any step.

    A vector of them travels down the stages, each writes its units' norms, and the whole vector
    travels back up. So every stage adds up the same numbers in the order of the units.
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
    """Receive right before what needs it, and send right after what makes it."""
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
    """Give each slot back after the last instruction that reads anything in it.

    A name that a chunk only hands on to the next one on its stage stays in the same slot.
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
    """Send weights that are watched after a step, and show them before the next forward.

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
    """For each message that is received, the index of the last instruction that reads it."""
    routes = place.routes
    last: dict[ReceiveActivations | ReceiveGradients, int] = {}
    slots: dict[tuple[int, int, str], ReceiveActivations] = {}  # by chunk, micro-batch and name
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
        # The gradient of a name that only passes through may be the received tensor itself.
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
