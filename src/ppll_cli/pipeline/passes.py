"""Passes: functions that add the other instructions to a schedule's compute instructions.

A schedule decides the order in which a stage computes. Each pass adds one kind of instruction, in
the same way for every schedule. `training` and `evaluation` run the passes in the right order.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.validation import validate, validate_evaluation

Stream = list[do.Instruction]
Received = do.ReceiveActivations | do.ReceiveGradients
Held = dict[tuple[int, int, str], Received]
"""For a tensor, given as chunk, micro-batch and name: the instruction that received it."""


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
    """Return all instructions of a stage for evaluation batches that are computed together.

    Each evaluation batch is treated as a micro-batch.

    Raises:
        ScheduleError: The schedule's instructions do not evaluate the stage's chunks.
    """
    computing = validate_evaluation(place, schedule.evaluation(place))
    return release(place, communicate(place, take_batch(place, computing)))


def mark(place: Place, what: do.Mark) -> Stream:
    """Return the instructions of a stage for a mark (evaluation, checkpoint or end).

    A stage first sends the mark on and then acts on it, so that the stages act in parallel. A stage
    receives the mark from the channel to its lowest chunk, like its batches.
    """
    layout = place.routes.layout
    lowest = [min(layout.of(stage)) for stage in range(layout.stages)]
    own = lowest[place.stage]
    stream: Stream = [do.ReceiveMark(layout.chunks[own - 1].stage, own)] if own else []
    for stage, chunk in enumerate(lowest):
        if chunk and layout.chunks[chunk - 1].stage == place.stage:
            stream.append(do.SendMark(stage, chunk - 1))
    return [*stream, what]


def whole_backwards(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Join the two halves of a backward if no input of the chunk needs a gradient."""
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


def take_batch(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Add `NextBatch` on the stage that has chunk 0."""
    return [*([do.NextBatch()] if 0 in place.chunks else []), *stream]


def averages(place: Place, stream: Sequence[do.Instruction]) -> Stream:
    """Add instructions that average each chunk's gradients over the replicas during the backward.

    The average of a chunk starts before the chunk's last backward. If the loss comes right before
    that backward, the average starts before the loss, because the loss completes the gradients of
    the auxiliary network. If every chunk of the stage computes its own loss, the step moves behind
    the backward of the next chunk, so that the average finishes during this backward.
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
    """Move each step behind the next backward of another chunk, or to the end."""
    found: Stream = []
    waiting: list[do.Step] = []
    for instruction in stream:
        if isinstance(instruction, do.Step):
            waiting.append(instruction)
            continue
        found.append(instruction)
        if isinstance(instruction, do.Backward | do.BackwardWeight):
            late = [step for step in waiting if step.chunk != instruction.chunk]
            found += late
            waiting = [step for step in waiting if step not in late]
    return [*found, *waiting]


def norms(place: Place, stream: Sequence[do.Instruction]) -> Stream:
    """Add instructions that exchange the squared gradient norms of all units before any step.

    A vector with one element per unit is sent from the first stage to the last. Each stage writes
    the norms of its units into it. Then the complete vector is sent back. So every stage sums the
    same numbers in the same order, the order of the units.
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


def communicate(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Add a receive right before each computation that needs it, and a send right after."""
    layout, routes = place.routes.layout, place.routes
    found: Stream = []
    for instruction in stream:
        match instruction:
            case do.Forward(chunk, micro_batch):
                if layout.crosses(chunk):
                    source = layout.chunks[chunk - 1].stage
                    found.append(do.ReceiveActivations(source, chunk, micro_batch))
                found.append(instruction)
                if layout.crosses(chunk + 1):
                    target = layout.chunks[chunk + 1].stage
                    found.append(do.SendActivations(target, chunk, micro_batch))
            case do.Backward(chunk, micro_batch) | do.BackwardInput(chunk, micro_batch):
                if layout.crosses(chunk + 1) and routes.out_of(chunk).gradients:
                    source = layout.chunks[chunk + 1].stage
                    found.append(do.ReceiveGradients(source, chunk, micro_batch))
                found.append(instruction)
                if layout.crosses(chunk) and routes.into[chunk].gradients:
                    target = layout.chunks[chunk - 1].stage
                    found.append(do.SendGradients(target, chunk, micro_batch))
            case _:
                found.append(instruction)
    return found


def release(place: Place, stream: Sequence[do.Instruction]) -> Stream:
    """Add a `Release` of each slot after the last instruction that reads any tensor in the slot.

    If a chunk passes a tensor on unchanged to the next chunk of the same stage, the tensor stays in
    its slot.
    """
    ends: dict[do.Release, list[int]] = defaultdict(list)
    for received, last in _last_reads(place, stream).items():
        gradients = isinstance(received, do.ReceiveGradients)
        kind: do.Kind = "gradients" if gradients else "activations"
        ends[do.Release(received.peer, received.chunk, kind)].append(last)
    after: dict[int, Stream] = defaultdict(list)
    for back, indices in sorted(ends.items(), key=lambda item: item[0].kind, reverse=True):
        for index in indices:
            after[index].append(back)
    return [each for index, own in enumerate(stream) for each in (own, *after[index])]


def weights(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Add instructions that send weights to losses of earlier modules, after each step.

    The chunk whose loss reads the weights receives them before the forward of its first
    micro-batch. Evaluation sends no weights: the loss uses the weights of the last training batch.
    """
    chunks, watches = place.routes.layout.chunks, place.routes.watches
    holders = {watcher: place.routes.watched(watcher) for watcher in watches}
    found: Stream = []
    for instruction in stream:
        if isinstance(instruction, do.Forward) and instruction.micro_batch == 0:
            chunk = instruction.chunk
            if chunk in watches:
                source, ahead = chunks[holders[chunk]].stage, watches[chunk].ahead
                if source == place.stage:
                    found.append(do.ReadWeights(chunk))
                else:
                    found.append(do.ReceiveWeights(source, chunk, ahead))
        found.append(instruction)
        if isinstance(instruction, do.Step):
            for watcher, holder in holders.items():
                target = chunks[watcher].stage
                if holder == instruction.chunk and target != place.stage:
                    found.append(do.SendWeights(target, watcher, watches[watcher].ahead))
    return found


def _last_reads(place: Place, stream: Sequence[do.Instruction]) -> dict[Received, int]:
    """Return for each received message the index of the last instruction that reads it."""
    routes = place.routes
    last: dict[Received, int] = {}
    tensors: Held = {}
    gradients: Held = {}

    def reads(index: int, held: Held, chunk: int, micro_batch: int, names: Iterable[str]) -> None:
        keys = [(chunk, micro_batch, name) for name in names]
        last.update({held[key]: index for key in keys if key in held})

    def hand_on(held: Held, source: int, target: int, m: int, names: Iterable[str]) -> None:
        both = [((source, m, name), (target, m, name)) for name in names]
        held.update({new: held[old] for old, new in both if old in held})

    def through(chunk: int) -> frozenset[str]:
        # If a chunk does not change a tensor, its gradient may be the received gradient itself.
        return routes.passing(chunk) & {*routes.out_of(chunk).gradients}

    for index, instruction in enumerate(stream):
        match instruction:
            case do.ReceiveActivations(_, chunk, m):
                last[instruction] = index
                tensors.update({(chunk, m, name): instruction for name in routes.into[chunk].names})
            case do.ReceiveGradients(_, chunk, m):
                last[instruction] = index
                names = routes.out_of(chunk).gradients
                gradients.update({(chunk, m, name): instruction for name in names})
            case do.Forward(chunk, m):
                if chunk - 1 in place.chunks:
                    passed = routes.passing(chunk - 1) & {*routes.into[chunk].names}
                    hand_on(tensors, chunk - 1, chunk, m, passed)
                reads(index, tensors, chunk, m, routes.reads[chunk])
            case do.Loss(chunk, m) | do.Measure(chunk, m):
                reads(index, tensors, chunk, m, routes.reads[chunk])
            case do.SendActivations(_, chunk, m):
                reads(index, tensors, chunk, m, routes.passing(chunk))
            case do.Backward(chunk, m) | do.BackwardInput(chunk, m) | do.BackwardWeight(chunk, m):
                reads(index, tensors, chunk, m, routes.reads[chunk])
                if chunk + 1 in place.chunks:
                    hand_on(gradients, chunk + 1, chunk, m, through(chunk + 1))
                reads(index, gradients, chunk, m, routes.out_of(chunk).gradients)
            case do.SendGradients(_, chunk, m):
                reads(index, gradients, chunk, m, through(chunk))
    return last
