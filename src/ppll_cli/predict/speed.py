"""Predicts the speed and memory of a job, by simulating its instructions with measured times."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ppll_cli.config.commands import setting, word
from ppll_cli.config.settings import usable_cores
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.snapshots import BUFFERS, snapshot_bytes
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.layout import Chunk
from ppll_cli.pipeline.simulate import Cost, Journey, at_once
from ppll_cli.predict.costs import (
    Source,
    bytes_of,
    end_of,
    instruction_times,
    journeys_of,
    params_of,
    with_copies,
)
from ppll_cli.predict.interconnect import Carriers, Interconnect, connected_stages, ring_bytes
from ppll_cli.predict.pace import Times, mean_neighbours, steady_state

ROUNDS = 8
"""Largest number of iterations in `predict`."""


@dataclass(frozen=True)
class EdgeLoad:
    """The traffic between two stages, in both directions and for all replicas together.

    Attributes:
        stages: The two stages, the lower one first.
        bytes_per_batch: Bytes that travel for one batch.
        between_machines: Whether the stages are on different machines, in any replica.
        busy_fraction: Fraction of time in which the connection is in use, in the direction with
            more bytes. None without a connection (see `Interconnect`).
    """

    stages: tuple[int, int]
    bytes_per_batch: int
    between_machines: bool
    busy_fraction: float | None


@dataclass(frozen=True)
class Prediction:
    """The predicted speed and memory of a job in the steady state.

    Attributes:
        batch_s: Seconds from one batch to the next.
        bubble_fraction: Fraction of the stages' total time in which they wait.
        stage_s: Seconds of work for a batch, for each stage.
        activation_bytes: Largest number of bytes kept for backward passes at the same time, for
            each stage: inputs, outputs and tensors that autograd saves.
        parameter_bytes: Bytes of parameters, gradients, optimizer states and averaged weights, for
            each stage; also of older versions of weights that losses of other modules read, and of
            the slots for these weights.
        averaged_bytes: Bytes of gradients that a replica sends for a batch, at the stage that sends
            most; 0 without replicas.
        recovery_bytes: Bytes of shared memory for snapshots and kept messages, for each stage;
            zeros if no worker can be restarted.
    """

    samples_per_second: float
    batch_s: float
    bubble_fraction: float
    stage_s: list[float]
    activation_bytes: list[int]
    parameter_bytes: list[int]
    edges: list[EdgeLoad]
    averaged_bytes: int
    recovery_bytes: list[int]


def predict(
    job: Job,
    profile: Source,
    interconnect: Interconnect = Interconnect(),  # noqa: B008 - it is frozen
    neighbours: int | None = None,
) -> Prediction:
    """Predict the speed and memory of a job.

    On CPUs, a worker takes longer while others compute on its machine. The prediction contains
    this effect.

    `neighbours` is the largest number of other workers that compute on a worker's machine at the
    same time. If it is given, all workers are assumed to be on one machine. If it is None,
    `neighbours_of` computes it, and the workers are on the machines that `job` names.
    """
    sizes = job.microbatches(job.course.batch_size)
    others = neighbours_of(job) if neighbours is None else neighbours
    carriers = Carriers(job, interconnect)
    quiet, stages = profile.at(sizes[0]), range(job.stages)

    def times_of(profile: Source) -> list[Times]:
        measured = [instruction_times(job, s, profile, sizes, carriers) for s in stages]
        return [with_copies(job, s, profile, sizes, times) for s, times in enumerate(measured)]

    # CPU cores share caches and memory, so a stage takes longer while other stages compute. Times
    # are interpolated between `alone` and `beside`, by the number of other workers that compute
    # meanwhile. This number depends on the times, so both are computed in turn.
    alone = times_of(quiet)
    beside = times_of(profile.at(sizes[0], others)) if others else alone
    underway = [journeys_of(job, s, beside[s], sizes, carriers, quiet) for s in stages]
    pace = partial(steady_state, job.streams(), lambda channel: job.channels[channel].slots)
    workers = _workers_by_machine(job, together=neighbours is not None)

    def carried(stage: int, instruction: Instruction) -> Journey | None:
        return underway[stage].get(instruction)

    journeys = carried if any(underway) else at_once
    steady = pace(_cost(beside), journeys)
    for _ in range(ROUNDS if others else 0):
        counts = mean_neighbours(steady, others, workers)
        times = [
            {i: own[i] + (slow[i] - own[i]) * count.get(i, 0.0) / others for i in own}
            for own, slow, count in zip(alone, beside, counts, strict=True)
        ]
        before, steady = steady, pace(_cost(times), journeys)
        if abs(steady.batch_s - before.batch_s) < 1e-3 * before.batch_s:
            break
    return Prediction(
        samples_per_second=job.course.batch_size / steady.batch_s,
        batch_s=steady.batch_s,
        bubble_fraction=steady.bubble_fraction,
        stage_s=steady.busy_s,
        activation_bytes=[_activation_bytes(job, s, quiet, steady.peak_live[s]) for s in stages],
        parameter_bytes=[_parameter_bytes(job, s, quiet) for s in stages],
        edges=_edge_loads(job, carriers, steady.batch_s),
        averaged_bytes=_averaged_bytes(job, quiet),
        recovery_bytes=recovery_bytes(job, quiet),
    )


def _workers_by_machine(job: Job, *, together: bool) -> list[Counter[int]]:
    return [
        Counter(0 if together else job.home(Seat(stage, n)) for n in range(job.replicas))
        for stage in range(job.stages)
    ]


def bp_batch_s(units: int, profile: Source) -> float:
    """Return the seconds in which one device trains on a batch by back-propagation.

    `units` is the number of units of the model. The batch has the profile's number of samples.
    """
    measured = [profile.unit(index) for index in range(units)]
    loss = profile.auxiliary([range(units)], 0)
    steps = profile.step_s * sum(unit.params for unit in measured)
    return steps + sum(part.forward_s + part.backward_s for part in (*measured, loss))


def neighbours_of(job: Job) -> int:
    """Return how many other workers compute on a worker's CPU at the same time; 0 on CUDA devices.

    With several machines, the result is for the machine with the most workers, which is assumed to
    have as many cores as this machine.
    """
    workers = max(Counter(job.homes).values(), default=len(job.seats))
    if workers == 1 or job.devices[0] != "cpu":
        return 0
    return max(0, min(workers, usable_cores() // job.threads) - 1)


def _cost(times: Sequence[Times]) -> Cost:
    return lambda stage, instruction: times[stage].get(instruction, 0.0)


def _activation_bytes(job: Job, stage: int, profile: Source, live: int) -> int:
    numbers = job.layout.of(stage)
    chunks = [_chunk_bytes(job, job.layout.chunks[number], profile) for number in numbers]
    # The first stage loads a whole batch; other stages receive inputs into slots of channels.
    first = bytes_of({**job.input_spec.specs, **job.task.targets}.values())
    entering = job.course.batch_size * first if 0 in numbers else 0
    for channel, room in job.channels.items():
        if channel.target == stage and channel.kind == "activations":
            needed = room.slots - job.depth - job.kept(channel)
            entering += needed * job.microbatch_size * bytes_of(job.specs[channel.chunk].values())
    # `live` forward passes wait for their backward passes at the same time. Under local learning,
    # they count as passes of the largest chunk, in other runs as passes of an average chunk.
    if job.local_learning:
        return entering + live * max(map(sum, chunks))
    saved = sum(kept for kept, _ in chunks)
    return entering + round(live * saved / len(chunks)) + max(beside for _, beside in chunks)


def _chunk_bytes(job: Job, chunk: Chunk, profile: Source) -> tuple[int, int]:
    units = [profile.unit(index) for index in chunk.units]
    ends = end_of(job, chunk, profile).saved_bytes
    # The graph of the auxiliary network is freed before the backward pass computes tensors again.
    beside = max(ends, *(unit.recomputed_bytes for unit in units))
    return sum(unit.saved_bytes for unit in units), beside


def _parameter_bytes(job: Job, stage: int, profile: Source) -> int:
    params = params_of(job, stage, profile)
    kept = round(params * profile.parameter_bytes) + _watched_bytes(job, stage)
    chunks = (job.layout.chunks[number] for number in job.layout.of(stage))
    units = [profile.unit(unit) for unit in job.layout.units(stage)]
    frozen = sum(unit.frozen_bytes for unit in units)
    kept += frozen + sum(end_of(job, chunk, profile).frozen_bytes for chunk in chunks)
    if job.settings.optim.ema is not None:
        kept += 4 * sum(unit.params for unit in units) + frozen
    return kept


def _watched_bytes(job: Job, stage: int) -> int:
    kept: dict[int, int] = {}  # bytes of older versions, by unit
    for watcher, watch in job.routes.watches.items():
        if job.layout.chunks[job.routes.watched(watcher)].stage == stage:
            older = (watch.lag - 1) * bytes_of(job.watched_specs(watcher).values())
            kept[watch.unit] = max(older, kept.get(watch.unit, 0))
    rooms = job.channels.items()
    slots = (
        (room.slots - job.kept(channel)) * room.size
        for channel, room in rooms
        if channel.kind == "weights" and channel.target == stage
    )
    return sum(kept.values()) + sum(slots)


def _averaged_bytes(job: Job, profile: Source) -> int:
    if job.replicas == 1:
        return 0
    most = max(params_of(job, stage, profile) for stage in range(job.stages))
    return ring_bytes(4 * most, job.replicas)


def recovery_bytes(job: Job, profile: Source) -> list[int]:
    """Return, for each stage, the bytes of snapshots and of messages kept for a restart."""
    result = [0] * job.stages
    for stage in job.restartable:
        result[stage] = BUFFERS * snapshot_bytes(job, stage, params_of(job, stage, profile))
    for channel, room in job.channels.items():
        result[channel.target] += job.kept(channel) * room.size
    return result


def _edge_loads(job: Job, carriers: Carriers, batch_s: float) -> list[EdgeLoad]:
    samples: Counter[tuple[int, int]] = Counter()  # bytes per sample
    weights: Counter[tuple[int, int]] = Counter()  # bytes per batch of any size
    for channel in job.channels:
        way, size = (channel.source, channel.target), bytes_of(job.carried(channel).values())
        if channel.kind == "weights":
            weights[way] += job.replicas * size
        elif channel.kind != "norms":
            samples[way] += size
    loads = []
    for first, second in connected_stages(job):
        sizes = [
            carriers.size(first, second, job.course.batch_size * samples[way]) + weights[way]
            for way in ((first, second), (second, first))
        ]
        link, busy = carriers.of_edge(first, second), None
        if link is not None:
            busy = max(sizes) / job.replicas / link.bytes_per_second / batch_s
        crosses = carriers.crosses(first, second)
        loads.append(EdgeLoad((first, second), sum(sizes), crosses, busy))
    return loads


def report(job: Job, profile: Source, stages_are_modules: bool) -> list[str]:
    """Return lines for the user: measured times, partition and predicted speed.

    With `stages_are_modules`, the results of the training depend on the cuts. So the last line
    tells the user how to choose the same cuts again.
    """
    whole, samples = job.course.batch_size, job.microbatch_size
    others, prediction = neighbours_of(job), predict(job, profile)
    measured = profile.at(samples, others)
    where = f"while {others} other process(es) compute" if others else "with nothing else running"
    lines = [
        f"partition=profile, milliseconds for {samples} samples, measured {where}:",
        f"  {'unit':<14}{'forward':>9}{'backward':>10}{'step':>8}  stage",
    ]
    for stage in range(job.stages):
        for index in job.layout.units(stage):
            unit = measured.unit(index)
            times = (unit.forward_s, unit.backward_s, measured.step_s * unit.params)
            forward, backward, step = (1000 * seconds for seconds in times)
            row = f"  {job.names[index]:<14}{forward:9.3f}{backward:10.3f}{step:8.3f}"
            lines.append(f"{row}  {stage}")
    for stage in range(job.stages):
        ends = [end_of(job, job.layout.chunks[n], measured) for n in job.layout.of(stage)]
        micro_batches = whole / job.replicas / samples
        losses = 1000 * micro_batches * sum(end.forward_s + end.backward_s for end in ends)
        total = 1000 * prediction.stage_s[stage]
        lines.append(f"  stage {stage}: {total:.3f} per batch, of which losses take {losses:.3f}")
    speed_up = bp_batch_s(len(job.names), profile.at(whole)) / (
        whole / prediction.samples_per_second
    )
    lines.append(
        f"  predicted: {prediction.samples_per_second:.0f} samples/s, {speed_up:.2f} x the speed "
        f"of bp on one device, bubble {prediction.bubble_fraction:.4f}"
    )
    if stages_are_modules and len(job.layout.modules) > 1:
        cuts = setting("local.cuts", [job.names[module.start] for module in job.layout.modules[1:]])
        lines.append(f"  the training depends on these cuts; to use them again, give {word(cuts)}")
    return lines
