"""Computes from measured times how long instructions, messages and averages take."""

from collections.abc import Iterable, Sequence
from math import ceil, prod
from typing import Protocol

from ppll_cli.job.job import Job
from ppll_cli.job.snapshots import messages_between, snapshot_bytes
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    FinishAverage,
    Forward,
    Instruction,
    Loss,
    ReceiveActivations,
    ReceiveWeights,
    SendActivations,
    SendGradients,
    SendWeights,
    StartAverage,
    Step,
)
from ppll_cli.pipeline.layout import Chunk
from ppll_cli.pipeline.rules import receives, sends
from ppll_cli.pipeline.simulate import Journey
from ppll_cli.predict.interconnect import Carriers, ring_bytes
from ppll_cli.predict.pace import Times
from ppll_cli.predict.profile import Measured
from ppll_cli.transport.averages import BUCKET_BYTES, CUDA_BUCKET_BYTES

PIECE = 16 << 20
"""Size in bytes of a timed copy. A snapshot is assumed to be copied at the same speed."""


class Source(Protocol):
    """The measurements that predictions need; `Profile` describes the methods."""

    def at(self, samples: int, neighbours: int = 0) -> "Source": ...  # noqa: D102
    def unit(self, index: int, first: bool = False) -> Measured: ...  # noqa: D102
    def auxiliary(self, modules: Sequence[range], module: int) -> Measured: ...  # noqa: D102
    def halves(self, index: int) -> tuple[float, float]: ...  # noqa: D102
    def copy(self, size: int) -> float: ...  # noqa: D102
    @property
    def step_s(self) -> float: ...  # noqa: D102
    @property
    def parameter_bytes(self) -> float: ...  # noqa: D102


def instruction_times(
    job: Job, stage: int, profile: Source, sizes: Sequence[int], carriers: Carriers
) -> Times:
    """Return for how many seconds each instruction keeps a stage busy.

    Instructions that take no time are missing. A send is missing if `Interconnect.within` transfers
    the message while the stage computes; `journeys_of` has the time of this transfer.

    `sizes` has the number of samples of each micro-batch. The first is the largest, and `profile`
    was measured with this number. Times are assumed to be proportional to the numbers of samples.
    """
    stream, times = job.training(stage, len(sizes)), Times()
    split = any(isinstance(instruction, BackwardInput) for instruction in stream)
    parts = {n: _seconds(job, n, profile, split) for n in job.layout.of(stage)}
    # Receiving counts as no time, because stages usually read messages in place. Loading a batch
    # counts as no time, because a separate thread loads it.
    for instruction in stream:
        match instruction:
            case Forward() | Loss() | Backward() | BackwardInput() | BackwardWeight():
                whole_s = parts[instruction.chunk][type(instruction)]
                times[instruction] = whole_s * sizes[instruction.micro_batch] / sizes[0]
            case Step(chunk):
                times[instruction] = parts[chunk][Step]
            case FinishAverage(chunk) if not carriers.of_average(stage):
                size = gradient_bytes(job, job.layout.chunks[chunk], profile)
                times[instruction] = profile.copy(ring_bytes(size, job.replicas))
            case SendActivations(peer) | SendGradients(peer) | SendWeights(peer):
                if carriers.crosses(stage, peer) or not carriers.of_edge(stage, peer):
                    times[instruction] = profile.copy(message_bytes(job, stage, instruction, sizes))
    return times


def with_copies(job: Job, stage: int, profile: Source, sizes: Sequence[int], times: Times) -> Times:
    """Return a stage's `times` plus the times of copies that make restarts of workers possible.

    A stage copies each received message that its channel keeps for a restart. The time of a
    snapshot is spread evenly over the optimizer steps between two snapshots.
    """
    own = dict(times)
    for instruction in job.training(stage, len(sizes)):
        received = receives(stage, instruction)
        copied = isinstance(instruction, ReceiveActivations | ReceiveWeights)
        if copied and received and job.kept(received[0]):
            own[instruction] = profile.copy(message_bytes(job, stage, instruction, sizes))
    if stage not in job.restartable:
        return own
    size = snapshot_bytes(job, stage, params_of(job, stage, profile))
    snapshot_s = profile.copy(PIECE) * size / PIECE
    steps = [instruction for instruction in own if isinstance(instruction, Step)]
    messages = job.snapshot_every
    if job.settings.recover.every is None:
        message_s = sum(own.values()) / len(sizes)  # each micro-batch is a message
        messages = messages_between(snapshot_s, message_s, messages)
    batches = ceil(messages / len(sizes))  # a stage takes a snapshot only after a whole batch
    for step in steps:
        own[step] += snapshot_s / batches / len(steps)
    return own


def journeys_of(
    job: Job, stage: int, times: Times, sizes: Sequence[int], carriers: Carriers, profile: Source
) -> dict[Instruction, Journey]:
    """Return the time of a stage's transfers (messages and averages of gradients), by instruction.

    A transfer without a connection (see `Interconnect`) is missing. Then the stage copies the
    tensors itself, and `instruction_times` has the time of the copy.
    """
    underway: dict[Instruction, Journey] = {}
    stream = job.training(stage, len(sizes))
    for number, instruction in enumerate(stream):
        match instruction:
            case SendActivations(peer) | SendGradients(peer) | SendWeights(peer):
                size = message_bytes(job, stage, instruction, sizes)
                as_is = isinstance(instruction, SendWeights)
                if message := carriers.message(stage, peer, size, as_is):
                    underway[instruction] = message
            case StartAverage(chunk):
                place = job.layout.chunks[chunk]
                whole = carriers.average(stage, gradient_bytes(job, place, profile))
                if whole is None:
                    continue
                shares = _completed_after(job, place, profile)
                kinds = Loss | Backward | BackwardWeight  # they compute gradients of parameters
                own = [i for i in stream[number:] if isinstance(i, kinds) and i.chunk == chunk]
                backward_s = sum(times.get(i, 0.0) for i in own)
                bucket_s, end_s = whole.carried_s / len(shares), 0.0
                for share in shares[:-1]:  # send each bucket of gradients when it is full
                    end_s = max(end_s, share * backward_s) + bucket_s
                underway[instruction] = Journey(end_s)
                # The last bucket of gradients is complete when the backward pass ends.
                underway[FinishAverage(chunk)] = Journey(bucket_s, whole.latency_s)
    return underway


def message_bytes(job: Job, stage: int, instruction: Instruction, sizes: Sequence[int]) -> int:
    """Return the size in bytes of the message that an instruction sends or receives."""
    message = sends(stage, instruction) or receives(stage, instruction)
    assert message is not None
    channel, (_, micro_batch) = message
    size = bytes_of(job.carried(channel).values())
    return size * (1 if channel.kind == "weights" else sizes[micro_batch])


def _completed_after(job: Job, chunk: Chunk, profile: Source) -> list[float]:
    limit = CUDA_BUCKET_BYTES if job.devices[0].startswith("cuda") else BUCKET_BYTES
    units = [profile.unit(index) for index in chunk.units]
    parts = [end_of(job, chunk, profile), *reversed(units)]
    size, whole_s = gradient_bytes(job, chunk, profile), sum(part.backward_s for part in parts)
    # For each bucket, the fraction of the backward pass after which the bucket is full. As an
    # estimate, all buckets but the last have the same size, and the loss's forward pass is ignored.
    shares: list[float] = []
    reached_s, reached = 0.0, 0
    for part in parts:
        own, full = 4 * part.params, (len(shares) + 1) * limit
        while full <= reached + own and full < size:
            shares.append((reached_s + part.backward_s * (full - reached) / own) / whole_s)
            full += limit
        reached_s, reached = reached_s + part.backward_s, reached + own
    return [*shares, 1.0]


def _seconds(job: Job, number: int, profile: Source, split: bool) -> dict[type, float]:
    chunk = job.layout.chunks[number]
    # Under local learning, the inputs of a module get no gradients, so the backward pass of its
    # first unit is cheaper.
    starts = job.layout.modules[chunk.module].start == chunk.units.start
    first = chunk.units.start if starts and job.local_learning else None
    units = [profile.unit(index, index == first) for index in chunk.units]
    end = end_of(job, chunk, profile)
    found = {
        Forward: sum(unit.forward_s for unit in units),
        Loss: end.forward_s + end.backward_s,
        Backward: sum(unit.backward_s for unit in units),
        Step: profile.step_s * (sum(unit.params for unit in units) + end.params),
    }
    if split:
        halves = zip(*(profile.halves(index) for index in chunk.units), strict=True)
        found[BackwardInput], found[BackwardWeight] = map(sum, halves)
    return found


def end_of(job: Job, chunk: Chunk, profile: Source) -> Measured:
    """Return the measured cost of the auxiliary network and the loss at the end of a chunk.

    All numbers are 0 if the chunk does not end a module.
    """
    if not chunk.ends_module:
        return Measured(0.0, 0.0, 0, 0)
    return profile.auxiliary(job.layout.modules, chunk.module)


def gradient_bytes(job: Job, chunk: Chunk, profile: Source) -> int:
    """Return the size in bytes of the float32 gradients of a chunk and its auxiliary network."""
    units = [profile.unit(index) for index in chunk.units]
    return 4 * sum(part.params for part in (*units, end_of(job, chunk, profile)))


def params_of(job: Job, stage: int, profile: Source) -> int:
    """Return the number of trained parameters of a stage, with auxiliary networks."""
    chunks = [job.layout.chunks[number] for number in job.layout.of(stage)]
    return sum(gradient_bytes(job, chunk, profile) for chunk in chunks) // 4


def bytes_of(specs: Iterable[ValueSpec]) -> int:
    """Return the total size in bytes of tensors with these shapes and dtypes.

    Shapes of a batch's tensors have no batch dimension, so the result is the size of one sample.
    """
    return sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs)
