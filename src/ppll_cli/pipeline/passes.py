"""Passes: functions that add instructions to those of a schedule, for example sends and receives.

A schedule decides the order in which a stage computes. Each pass has one purpose, and works in the
same way for every schedule. `training` and `evaluation` run the passes in the right order.
"""

from collections.abc import Iterable

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.gradients import averages, norms, whole_backwards
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.releases import release
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.upstream import weights
from ppll_cli.pipeline.validation import validate, validate_evaluation


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
    """Return all instructions of a stage for one or more evaluation batches, computed together.

    In these instructions, a micro-batch is a whole evaluation batch.

    Raises:
        ScheduleError: The schedule's instructions do not evaluate the stage's chunks.
    """
    computing = validate_evaluation(place, schedule.evaluation(place))
    return release(place, communicate(place, take_batch(place, computing)))


def take_batch(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Add `NextBatch` on the stage that has chunk 0."""
    return [*([do.NextBatch()] if 0 in place.chunks else []), *stream]


def communicate(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Add receives and sends.

    A receive comes right before the computation that needs it. A send comes right after the
    computation of what it sends.
    """
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
