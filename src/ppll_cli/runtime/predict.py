"""What a job will do on its devices, from a profile: the schedule's own instructions on a clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol

import torch

from ppll_cli.partition.layout import Chunk
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.pace import Pipeline, Times, company
from ppll_cli.runtime.profile import Measured
from ppll_cli.schedules.instructions import (
    Backward,
    FinishAverage,
    Forward,
    LocalBackward,
    LocalStep,
    LocalUpdate,
    Loss,
    SendActivations,
    SendGradients,
    Step,
)
from ppll_cli.settings import usable_cores
from ppll_cli.simulate import Cost
from ppll_cli.values import ValueSpec

ROUNDS = 8
"""How often a prediction is made anew from how much its stages compute at the same time."""


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


class Link(NamedTuple):
    """What carries messages between stages, if it is not this machine's memory.

    The sender is busy for the whole time, as it is where it copies itself.
    """

    bytes_per_second: float
    latency_s: float = 0.0

    def seconds(self, size: int) -> float:
        """Of a message."""
        return self.latency_s + size / self.bytes_per_second


@dataclass(frozen=True)
class Prediction:
    """What is to be expected of a job.

    Attributes:
        samples_per_second: In the steady state.
        bubble_fraction: Share of the stages' time in which they wait.
        stage_s: For each stage, how long it works for a batch.
        activation_bytes: For each stage, the most that it keeps for backwards at once, its inputs
            among it: what autograd saves, and outputs.
        parameter_bytes: For each stage: parameters, their gradients and the optimizer's state.
        edge_bytes_per_second: For each cut, what crosses it, in both directions together.
    """

    samples_per_second: float
    bubble_fraction: float
    stage_s: list[float]
    activation_bytes: list[int]
    parameter_bytes: list[int]
    edge_bytes_per_second: list[float]


def predict(job: Job, profile: Source, link: Link | None = None) -> Prediction:
    """Predict a job.

    On CPU, where cores share much, a stage takes longer while others compute. So everything is
    measured alone and beside as many processes as there will be other stages with cores of their
    own, and each instruction takes a time in between, by how many stages compute while it runs.
    That is found by turns: from times to an order of events, and from these to times.
    """
    sizes = job.microbatches(job.course.batch_size)
    others = neighbours_of(job)
    alone = instruction_times(job, profile.at(sizes[0]), sizes, link)
    beside = instruction_times(job, profile.at(sizes[0], others), sizes, link) if others else alone
    pipeline, times = Pipeline.of(job), beside
    steady = pipeline.steady(_cost(times))
    for _ in range(ROUNDS if others else 0):
        crowds = company(steady, others, job.replicas)
        times = [
            {i: own[i] + (slow[i] - own[i]) * crowd.get(i, 0.0) / others for i in own}
            for own, slow, crowd in zip(alone, beside, crowds, strict=True)
        ]
        before, steady = steady, pipeline.steady(_cost(times))
        if abs(steady.batch_s - before.batch_s) < 1e-3 * before.batch_s:
            break
    return Prediction(
        samples_per_second=job.course.batch_size / steady.batch_s,
        bubble_fraction=steady.bubble_fraction,
        stage_s=steady.busy_s,
        activation_bytes=_activation_bytes(job, profile.at(sizes[0]), steady.peak_live),
        parameter_bytes=_parameter_bytes(job, profile.at(sizes[0])),
        edge_bytes_per_second=[
            (job.course.batch_size * (down + up)) / steady.batch_s for down, up in _edge_bytes(job)
        ],
    )


def bp_batch_s(modules: int, profile: Source) -> float:
    """How long back-propagation takes for a batch of the profile's size, on one device."""
    whole = [range(modules)]
    units = [profile.unit(index) for index in whole[0]]
    loss = profile.auxiliary(whole, 0)
    steps = profile.step_s * sum(unit.params for unit in units)
    return steps + sum(part.forward_s + part.backward_s for part in (*units, loss))


def neighbours_of(job: Job) -> int:
    """How many other workers compute beside one on this machine's CPU; 0 on other devices."""
    workers = len(job.seats)
    if workers == 1 or job.devices[0] != "cpu":
        return 0
    return max(0, min(workers, usable_cores() // job.threads) - 1)


def instruction_times(
    job: Job, profile: Source, sizes: Sequence[int], link: Link | None = None
) -> list[Times]:
    """What the instructions of each stage take.

    Receiving costs nothing, since stages read in place, and neither does the next batch, which a
    thread makes in the meantime.

    Args:
        job: Whose.
        profile: Of micro-batches of the largest size; the others take as much less.
        sizes: Samples of each micro-batch.
        link: Where messages go; None copies them on the device.
    """
    schedule = job.make_schedule()
    transfer = profile.copy if link is None else link.seconds
    edges = _edge_bytes(job)
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
                    # Each replica sends and gets every part of the sum but its own, twice.
                    share = 2 * (job.replicas - 1) / job.replicas
                    seconds = transfer(round(share * parts[chunk].gradient_bytes))
                case Loss(chunk, m):
                    seconds = parts[chunk].loss_s * sizes[m] / sizes[0]
                case Backward(chunk, m):
                    seconds = parts[chunk].backward_s * sizes[m] / sizes[0]
                case Step():
                    seconds = sum(part.step_s for part in parts)
                case SendActivations(_, _, m):
                    seconds = transfer(sizes[m] * edges[stage][0])
                case SendGradients(_, _, m):
                    seconds = transfer(sizes[m] * edges[stage - 1][1])
                case _:
                    continue
            times[instruction] = seconds
        result.append(times)
    return result


class _ChunkTimes:
    """Seconds of what a stage does with a chunk, for the profile's number of samples."""

    def __init__(self, job: Job, chunk: Chunk, profile: Source) -> None:
        first = chunk.units.start if job.local_learning else None
        units = [profile.unit(index, index == first) for index in chunk.units]
        end = _end(job, chunk, profile)
        self.forward_s = sum(unit.forward_s for unit in units)
        self.loss_s = end.forward_s
        self.backward_s = sum(unit.backward_s for unit in units) + end.backward_s
        params = sum(unit.params for unit in units) + end.params
        self.gradient_bytes = 4 * params
        self.step_s = profile.step_s * params
        self.update_s = self.loss_s + self.backward_s + self.step_s


def _end(job: Job, chunk: Chunk, profile: Source) -> Measured:
    """The loss behind a chunk, if its module ends there."""
    if not chunk.ends_module:
        return Measured(0.0, 0.0, 0, 0)
    return profile.auxiliary(job.layout.modules, chunk.module)


def _cost(times: Sequence[Times]) -> Cost:
    """Times as the simulator asks for them."""
    return lambda stage, instruction: times[stage].get(instruction, 0.0)


def _activation_bytes(job: Job, profile: Source, live: Sequence[int]) -> list[int]:
    """For each stage: under local learning one module's, else those of all forwards at once."""
    schedule = job.make_schedule()
    image = ValueSpec((job.image.channels, job.image.height, job.image.width), torch.float32)
    entering = [_bytes([image, *job.task.targets.values()])]
    entering += [_bytes(edge.specs) for edge in job.edges]
    result = []
    for stage in range(job.stages):
        saved = [
            sum(profile.unit(index).saved_bytes for index in chunk.units)
            + _end(job, chunk, profile).saved_bytes
            for chunk in job.layout.chunks(stage)
        ]
        # The first stage loads a batch as a whole; the others get no more than they hold.
        held = schedule.held(job.place(stage, schedule.microbatches))
        samples = job.microbatch_size * held if stage else job.course.batch_size
        most = max(saved) if schedule.local else sum(saved)
        result.append(live[stage] * most + samples * entering[stage])
    return result


def _parameter_bytes(job: Job, profile: Source) -> list[int]:
    """For each stage, of its units and auxiliary networks."""
    result = []
    for stage, units in enumerate(job.layout.stages):
        ends = [_end(job, chunk, profile) for chunk in job.layout.chunks(stage)]
        params = sum(part.params for part in (*map(profile.unit, units), *ends))
        result.append(round(params * profile.parameter_bytes))
    return result


def _edge_bytes(job: Job) -> list[tuple[int, int]]:
    """For each cut, bytes that cross it for a sample, downstream and back."""
    result = []
    for edge in job.edges:
        specs = dict(zip(edge.names, edge.specs, strict=True))
        result.append((_bytes(edge.specs), _bytes(specs[name] for name in edge.gradients)))
    return result


def _bytes(specs: Iterable[ValueSpec]) -> int:
    """Of one sample."""
    return sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs)


def report(job: Job, names: Sequence[str], profile: Source, stages_are_modules: bool) -> list[str]:
    """What was measured and what it made of the partition, for the user.

    Args:
        job: What is going to run.
        names: Of the model's units.
        profile: What was measured.
        stages_are_modules: Whether what is trained depends on where the partition cuts.
    """
    whole, samples = job.course.batch_size, job.microbatch_size
    others, prediction = neighbours_of(job), predict(job, profile)
    measured = profile.at(samples, others)
    where = f"beside {others} other process(es) that compute" if others else "with nothing beside"
    lines = [
        f"partition=profile, milliseconds for {samples} samples, measured {where}:",
        f"  {'unit':<14}{'forward':>9}{'backward':>10}{'step':>8}  stage",
    ]
    for stage, units in enumerate(job.layout.stages):
        for index in units:
            unit = measured.unit(index)
            times = (unit.forward_s, unit.backward_s, measured.step_s * unit.params)
            forward, backward, step = (1000 * seconds for seconds in times)
            row = f"  {names[index]:<14}{forward:9.3f}{backward:10.3f}{step:8.3f}"
            lines.append(f"{row}  {stage}")
    for stage in range(job.stages):
        ends = [_end(job, chunk, measured) for chunk in job.layout.chunks(stage)]
        losses = 1000 * whole / samples * sum(end.forward_s + end.backward_s for end in ends)
        total = 1000 * prediction.stage_s[stage]
        lines.append(f"  stage {stage}: {total:.3f} a batch, of which losses {losses:.3f}")
    speed_up = bp_batch_s(len(names), profile.at(whole)) / (whole / prediction.samples_per_second)
    lines.append(
        f"  predicted: {prediction.samples_per_second:.0f} samples/s, {speed_up:.2f} x the speed "
        f"of bp on one device, bubble {prediction.bubble_fraction:.4f}"
    )
    if stages_are_modules and len(job.layout.modules) > 1:
        cuts = ",".join(names[module.start] for module in job.layout.modules[1:])
        lines.append(f"  the training depends on these cuts; local.cuts=[{cuts}] pins them")
    return lines
