"""What the instructions of a job take, and what they set on its way, from a profile."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Protocol

from ppll_cli.partition.layout import Chunk
from ppll_cli.runtime.averages import BUCKET_BYTES
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.prediction.interconnect import Carriers, ring_bytes
from ppll_cli.runtime.prediction.pace import Times
from ppll_cli.runtime.prediction.profile import Measured
from ppll_cli.schedules.instructions import (
    Backward,
    FinishAverage,
    Forward,
    Instruction,
    LocalBackward,
    LocalStep,
    LocalUpdate,
    Loss,
    SendActivations,
    SendGradients,
    StartAverage,
    Step,
)
from ppll_cli.simulate import Journey
from ppll_cli.values import ValueSpec


class Source(Protocol):
    """What a profile says; see there."""

    def at(self, samples: int, neighbours: int = 0) -> "Source": ...  # noqa: D102
    def unit(self, index: int, first: bool = False) -> Measured: ...  # noqa: D102
    def auxiliary(self, modules: Sequence[range], module: int) -> Measured: ...  # noqa: D102
    def copy(self, size: int) -> float: ...  # noqa: D102
    @property
    def step_s(self) -> float: ...  # noqa: D102
    @property
    def parameter_bytes(self) -> float: ...  # noqa: D102


def instruction_times(
    job: Job, profile: Source, sizes: Sequence[int], carriers: Carriers
) -> list[Times]:
    """What the instructions of each stage take.

    Receiving costs nothing, since stages read in place, and neither does the next batch, which a
    thread makes in the meantime.

    Args:
        job: Whose.
        profile: Of micro-batches of the largest size; the others take as much less.
        sizes: Samples of each micro-batch.
        carriers: Of messages and averages. What they carry by themselves takes the sender no time,
            unless it has to be copied for a network.
    """
    schedule = job.make_schedule()
    edges = edge_bytes(job)

    def send(cut: int, size: int) -> float:
        carried = carriers.of_edge(cut) and not carriers.crosses(cut)
        return 0.0 if carried else profile.copy(size)

    result = []
    for stage in range(job.stages):
        chunks = job.layout.chunks(stage)
        parts = [_ChunkTimes(job, chunk, profile) for chunk in chunks]
        times: Times = {}
        for instruction in schedule.batch(job.place(stage, len(sizes))):
            match instruction:
                case Forward(chunk, m):
                    seconds = parts[chunk].forward_s * sizes[m] / sizes[0]
                case LocalUpdate(chunk, m):
                    seconds = parts[chunk].update_s
                case LocalBackward(chunk, _):
                    seconds = parts[chunk].loss_s + parts[chunk].backward_s
                case LocalStep(chunk):
                    seconds = parts[chunk].step_s
                case FinishAverage(chunk):
                    moved = ring_bytes(parts[chunk].gradient_bytes, job.replicas)
                    seconds = 0.0 if carriers.of_average(stage) else profile.copy(moved)
                case Loss(chunk, m):
                    seconds = parts[chunk].loss_s * sizes[m] / sizes[0]
                case Backward(chunk, m):
                    seconds = parts[chunk].backward_s * sizes[m] / sizes[0]
                case Step():
                    seconds = sum(part.step_s for part in parts)
                case SendActivations(_, _, m):
                    seconds = send(stage, sizes[m] * edges[stage][0])
                case SendGradients(_, _, m):
                    seconds = send(stage - 1, sizes[m] * edges[stage - 1][1])
                case _:
                    continue
            times[instruction] = seconds
        result.append(times)
    return result


def journeys_of(
    job: Job,
    times: Sequence[Times],
    sizes: Sequence[int],
    carriers: Carriers,
    profile: Source,
) -> list[dict[Instruction, Journey | None]]:
    """What the instructions of each stage set on its way."""
    schedule = job.make_schedule()
    edges = edge_bytes(job)
    result = []
    for stage in range(job.stages):
        chunks = job.layout.chunks(stage)
        underway: dict[Instruction, Journey | None] = {}
        stream = list(schedule.batch(job.place(stage, len(sizes))))
        for number, instruction in enumerate(stream):
            match instruction:
                case SendActivations(_, _, m):
                    underway[instruction] = carriers.message(stage, sizes[m] * edges[stage][0])
                case SendGradients(_, _, m):
                    size = sizes[m] * edges[stage - 1][1]
                    underway[instruction] = carriers.message(stage - 1, size)
                case StartAverage(chunk):
                    size = gradient_bytes(job, chunks[chunk], profile)
                    if (whole := carriers.average(stage, size)) is None:
                        continue
                    shares = _completed_after(job, chunks[chunk], profile)
                    backward_s = times[stage].get(stream[number + 1], 0.0)
                    bucket_s, end_s = whole.carried_s / len(shares), 0.0
                    for share in shares[:-1]:  # a bucket goes when it is complete
                        end_s = max(end_s, share * backward_s) + bucket_s
                    underway[instruction] = Journey(end_s)
                    # The last one is complete as the backward ends.
                    underway[FinishAverage(chunk)] = Journey(bucket_s, whole.latency_s)
        result.append(underway)
    return result


def _completed_after(job: Job, chunk: Chunk, profile: Source) -> list[float]:
    """For each bucket of an average, the share of the backward after which it is complete.

    That is about so: buckets end with a parameter, and a loss that comes first is left out.
    """
    units = [profile.unit(index) for index in chunk.units]
    parts = [end_of(job, chunk, profile), *reversed(units)]
    size, whole_s = gradient_bytes(job, chunk, profile), sum(part.backward_s for part in parts)
    shares: list[float] = []
    reached_s, reached = 0.0, 0
    for part in parts:
        own, full = 4 * part.params, (len(shares) + 1) * BUCKET_BYTES
        while full <= reached + own and full < size:
            shares.append((reached_s + part.backward_s * (full - reached) / own) / whole_s)
            full += BUCKET_BYTES
        reached_s, reached = reached_s + part.backward_s, reached + own
    return [*shares, 1.0]


class _ChunkTimes:
    """Seconds of what a stage does with a chunk, for the profile's number of samples."""

    def __init__(self, job: Job, chunk: Chunk, profile: Source) -> None:
        first = chunk.units.start if job.local_learning else None
        units = [profile.unit(index, index == first) for index in chunk.units]
        end = end_of(job, chunk, profile)
        self.forward_s = sum(unit.forward_s for unit in units)
        self.loss_s = end.forward_s
        self.backward_s = sum(unit.backward_s for unit in units) + end.backward_s
        self.gradient_bytes = gradient_bytes(job, chunk, profile)
        self.step_s = profile.step_s * (sum(unit.params for unit in units) + end.params)
        self.update_s = self.loss_s + self.backward_s + self.step_s


def end_of(job: Job, chunk: Chunk, profile: Source) -> Measured:
    """The loss behind a chunk, if its module ends there."""
    if not chunk.ends_module:
        return Measured(0.0, 0.0, 0, 0)
    return profile.auxiliary(job.layout.modules, chunk.module)


def gradient_bytes(job: Job, chunk: Chunk, profile: Source) -> int:
    """Of a chunk's gradients, which are numbers of 32 bits."""
    units = [profile.unit(index) for index in chunk.units]
    return 4 * sum(part.params for part in (*units, end_of(job, chunk, profile)))


def edge_bytes(job: Job) -> list[tuple[int, int]]:
    """For each cut, bytes that cross it for a sample, downstream and back."""
    result = []
    for edge in job.edges:
        specs = dict(zip(edge.names, edge.specs, strict=True))
        result.append((bytes_of(edge.specs), bytes_of(specs[name] for name in edge.gradients)))
    return result


def bytes_of(specs: Iterable[ValueSpec]) -> int:
    """Of one sample."""
    return sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs)
