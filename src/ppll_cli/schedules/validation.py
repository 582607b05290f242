"""Whether the instructions of a stage train the whole model, and nothing else.

`rules.check` asks whether each instruction finds what it computes with. A stream can pass that and
still train another network: it may send the outputs of another chunk than the stage's last one,
leave a module untrained, or give a slot back that is still read. `validate` refuses these.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter

from ppll_cli.errors import ScheduleError
from ppll_cli.schedules.instructions import (
    AddNorms,
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
    ReceiveNorms,
    Release,
    SendActivations,
    SendGradients,
    SendNorms,
    StartAverage,
    Step,
)
from ppll_cli.schedules.schedule import Place, step

MOST_PER_DUTY = 100
"""So many instructions at most for a chunk and micro-batch: a user's generator may never end."""

BETWEEN_STAGES = ReceiveActivations | SendActivations | ReceiveGradients | SendGradients
OF_A_PART = BETWEEN_STAGES | Forward | Loss | Backward | LocalUpdate | LocalBackward | Measure
"""Instructions that name a micro-batch."""

Duty = tuple[type[Instruction], tuple[int, ...]]
"""What a stage does again for each micro-batch: an instruction, with its peer and chunk."""


def validate(place: Place, local: bool, instructions: Iterable[Instruction]) -> None:
    """Check a stage's instructions for one training batch.

    Args:
        place: The stage.
        local: Modules are trained by local losses.
        instructions: Of the stage.

    Raises:
        ScheduleError: An instruction is unknown, missing, repeated, out of the order of the
            micro-batches, or names a chunk or a stage that it cannot be for.
    """
    most = MOST_PER_DUTY * (place.chunks + 1) * (place.microbatches + 1)
    stream = [*islice(instructions, most + 1)]
    if len(stream) > most:
        raise ScheduleError(f"stage {place.stage} has more than {most} instructions for a batch")
    for instruction in stream:
        if not isinstance(instruction, Instruction):
            raise ScheduleError(f"stage {place.stage} is told {instruction!r}, no instruction")
        if not 0 <= getattr(instruction, "chunk", 0) < place.chunks:
            raise ScheduleError(
                f"{instruction} on stage {place.stage}, whose chunks are 0 to {place.chunks - 1}"
            )
    _check_duties(place, local, stream)
    _check_steps(place, local, stream)
    _check_releases(place, stream)


def _check_duties(place: Place, local: bool, stream: Sequence[Instruction]) -> None:
    """Each duty is done once for each micro-batch, in the order 0 to M-1."""
    whole = [*range(place.microbatches)]
    wanted = _duties(place, local, stream)
    done: dict[Duty, list[int]] = defaultdict(list)
    for instruction in stream:
        if isinstance(instruction, OF_A_PART):
            peer = [instruction.peer] if isinstance(instruction, BETWEEN_STAGES) else []
            duty: Duty = type(instruction), (*peer, instruction.chunk)
            kind = duty[0]
            if duty not in wanted:
                possible = [_spelled(kind, other) for each, other in wanted if each is kind]
                instead = f"only {' or '.join(possible)} can be" if possible else "nothing can be"
                raise ScheduleError(f"{instruction} is not for stage {place.stage}: {instead}")
            done[duty].append(instruction.micro_batch)
    for kind, named in wanted:
        numbers = done[kind, named]
        if numbers != whole:
            missing = [number for number in whole if number not in numbers]
            what = f"stage {place.stage} never runs" if missing else f"stage {place.stage} runs"
            how = f"of micro-batch {missing[0]}" if missing else f"of the micro-batches {numbers}"
            order = "" if missing else f" in this order, where each has to come once: {whole}"
            raise ScheduleError(f"{what} {_spelled(kind, named)} {how}{order}")


def _duties(place: Place, local: bool, stream: Sequence[Instruction]) -> list[Duty]:
    """What the stage does for each micro-batch."""
    last = place.chunks - 1
    wanted: list[Duty] = [(Forward, (chunk,)) for chunk in range(place.chunks)]
    if not place.first:
        wanted.append((ReceiveActivations, (place.stage - 1, 0)))
    if not place.last:
        wanted.append((SendActivations, (place.stage + 1, last)))
    if local:
        # Both ways to train a module are legal where nobody else has a say in its step.
        updated = {each.chunk for each in stream if isinstance(each, LocalUpdate)}
        at_once = updated if place.replicas == 1 and place.microbatches == 1 else set()
        for chunk in range(place.chunks):
            wanted.append((LocalUpdate if chunk in at_once else LocalBackward, (chunk,)))
        return wanted
    wanted += [(Backward, (chunk,)) for chunk in range(place.chunks)]
    if place.last:
        wanted.append((Loss, (last,)))
    else:
        wanted.append((ReceiveGradients, (place.stage + 1, last)))
    if not place.first:
        wanted.append((SendGradients, (place.stage - 1, 0)))
    return wanted


def _check_steps(place: Place, local: bool, stream: Sequence[Instruction]) -> None:
    """The batch, averages, norms and steps come as often as they have to, in their order."""
    taken = [each for each in stream if isinstance(each, NextBatch)]
    if len(taken) != place.first:
        raise ScheduleError(
            f"stage {place.stage} runs NextBatch {len(taken)} times, where {int(place.first)} is "
            "needed"
        )
    wanted: list[Instruction]
    chunks = range(place.chunks)
    averaged = chunks if place.replicas > 1 else ()
    starts = [each for each in stream if isinstance(each, StartAverage)]
    ends = [each for each in stream if isinstance(each, FinishAverage)]
    _compare(place, [*map(StartAverage, averaged)], sorted(starts, key=attrgetter("chunk")))
    _compare(place, [*map(FinishAverage, averaged)], sorted(ends, key=attrgetter("chunk")))
    if local:
        by_itself = {each.chunk for each in stream if isinstance(each, LocalBackward)}
        wanted = [LocalStep(chunk) for chunk in chunks if chunk in by_itself]
        steps = [each for each in stream if isinstance(each, LocalStep)]
        _compare(place, wanted, sorted(steps, key=attrgetter("chunk")))
        others = [e for e in stream if isinstance(e, Step | AddNorms | SendNorms | ReceiveNorms)]
        _compare(place, [], others)
        return
    kinds = AddNorms | SendNorms | ReceiveNorms | Step
    wanted = [each for each in step(place) if isinstance(each, kinds)]
    _compare(place, wanted, [each for each in stream if isinstance(each, kinds)])
    _compare(place, [], [each for each in stream if isinstance(each, LocalStep)])
    first = next(index for index, each in enumerate(stream) if isinstance(each, AddNorms | Step))
    if late := [each for each in stream[first:] if isinstance(each, Backward | FinishAverage)]:
        raise ScheduleError(f"{stream[first]} on stage {place.stage} comes before {late[0]}")


def _compare(place: Place, wanted: Sequence[Instruction], found: Sequence[Instruction]) -> None:
    if [*wanted] == [*found]:
        return
    missing = next((each for each in wanted if each not in found), None)
    if missing is not None:
        raise ScheduleError(f"stage {place.stage} never runs {missing}")
    extra = next((each for each in found if each not in wanted), None)
    if extra is not None:
        raise ScheduleError(f"{extra} is not for stage {place.stage}")
    raise ScheduleError(
        f"stage {place.stage} runs {', '.join(map(str, found))}, where this has to come: "
        f"{', '.join(map(str, wanted))}"
    )


def _check_releases(place: Place, stream: Sequence[Instruction]) -> None:
    """Each slot is given back once, after the last instruction that reads it.

    Slots are given back in the order in which they were received, so a `Release` names none.
    """
    held: dict[int, deque[ReceiveActivations | ReceiveGradients]] = defaultdict(deque)
    for index, instruction in enumerate(stream):
        if isinstance(instruction, ReceiveActivations | ReceiveGradients):
            held[instruction.peer].append(instruction)
        if not isinstance(instruction, Release):
            continue
        if not held[instruction.peer]:
            raise ScheduleError(f"{instruction} on stage {place.stage} finds no slot to give back")
        received = held[instruction.peer].popleft()
        reader = next(_readers(received, stream[index:]), None)
        if reader is not None:
            raise ScheduleError(
                f"{instruction} on stage {place.stage} gives the slot of {received} back before "
                f"{reader} reads it"
            )
    if left := [each for slots in held.values() for each in slots]:
        raise ScheduleError(f"stage {place.stage} never runs a Release for {left[0]}")


def _readers(
    received: ReceiveActivations | ReceiveGradients, stream: Sequence[Instruction]
) -> Iterator[Instruction]:
    """The instructions that read a received message, or may: any of its micro-batch."""
    computing = Forward | LocalUpdate | LocalBackward | Loss | Backward | SendActivations
    kinds = Backward if isinstance(received, ReceiveGradients) else computing
    for instruction in stream:
        if isinstance(instruction, kinds) and instruction.micro_batch == received.micro_batch:
            yield instruction


def _spelled(kind: type[Instruction], named: Sequence[int]) -> str:
    """A duty as its instruction is printed, without the micro-batch."""
    *peer, chunk = named
    parts = [f"peer={each}" for each in peer] + [f"chunk={chunk}"]
    return f"{kind.__name__}({', '.join(parts)})"
