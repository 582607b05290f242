"""What a job will do on its devices, from a profile: the schedule's own instructions on a clock."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ppll_cli.config.commands import setting, word
from ppll_cli.config.settings import usable_cores
from ppll_cli.job.job import Job, Seat
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.layout import Chunk
from ppll_cli.pipeline.simulate import Cost, Journey, at_once
from ppll_cli.predict.costs import (
    Source,
    bytes_of,
    end_of,
    gradient_bytes,
    instruction_times,
    journeys_of,
    sent_bytes,
    weight_bytes,
)
from ppll_cli.predict.interconnect import (
    Carriers,
    Interconnect,
    neighbours,
    ring_bytes,
)
from ppll_cli.predict.pace import Pipeline, Times, company

ROUNDS = 8
"""How often a prediction is made anew from how much its stages compute at the same time."""


@dataclass(frozen=True)
class EdgeLoad:
    """What travels between two stages, in all replicas and both directions together.

    Attributes:
        stages: The two, the lower one first.
        bytes_per_batch: Of a training batch.
        between_machines: Whether it goes from one to another, for any of the replicas.
        busy_fraction: Share of the time in which what carries it does so, in the direction that has
            more to carry; None where messages are copied by who sends them.
    """

    stages: tuple[int, int]
    bytes_per_batch: int
    between_machines: bool
    busy_fraction: float | None


@dataclass(frozen=True)
class Prediction:
    """What is to be expected of a job.

    Attributes:
        samples_per_second: In the steady state.
        batch_s: From one batch to the next.
        bubble_fraction: Share of the stages' time in which they wait.
        stage_s: For each stage, how long it works for a batch.
        activation_bytes: For each stage, the most that it keeps for backwards at once, its inputs
            among it: what autograd saves, and outputs.
        parameter_bytes: For each stage: parameters, their gradients and the optimizer's state, and
            what is kept of weights that losses watch: older versions, and slots.
        edges: What travels between each two stages.
        averaged_bytes: What each replica sends of its gradients for a batch, at the stage that has
            the most; 0 without replicas.
    """

    samples_per_second: float
    batch_s: float
    bubble_fraction: float
    stage_s: list[float]
    activation_bytes: list[int]
    parameter_bytes: list[int]
    edges: list[EdgeLoad]
    averaged_bytes: int


def predict(
    job: Job,
    profile: Source,
    interconnect: Interconnect = Interconnect(),  # noqa: B008 - it is frozen
    neighbours: int | None = None,
) -> Prediction:
    """Predict a job.

    On CPU, where cores share much, a stage takes longer while others compute. So everything is
    measured alone and beside as many processes as there will be other stages with cores of their
    own, and each instruction takes a time in between, by how many stages compute while it runs.
    That is found by turns: from times to an order of events, and from these to times.

    Args:
        job: What is going to run.
        profile: What was measured.
        interconnect: What carries messages and gradients.
        neighbours: How many workers compute beside one, at most, whatever machine they are on;
            None: those of its machine, as `neighbours_of` says.
    """
    sizes = job.microbatches(job.course.batch_size)
    others = neighbours_of(job) if neighbours is None else neighbours
    carriers = Carriers(job, interconnect)
    quiet = profile.at(sizes[0])
    alone = instruction_times(job, quiet, sizes, carriers)
    beside = alone
    if others:
        beside = instruction_times(job, profile.at(sizes[0], others), sizes, carriers)
    underway = journeys_of(job, beside, sizes, carriers, quiet)
    pipeline, times = Pipeline.of(job), beside
    crews = [
        Counter(
            job.home(Seat(stage, replica)) if neighbours is None else 0
            for replica in range(job.replicas)
        )
        for stage in range(job.stages)
    ]

    def carried(stage: int, instruction: Instruction) -> Journey | None:
        return underway[stage].get(instruction)

    anything = any(journey for stage in underway for journey in stage.values())
    journeys = carried if anything else at_once
    steady = pipeline.steady(_cost(times), journeys)
    for _ in range(ROUNDS if others else 0):
        crowds = company(steady, others, crews)
        times = [
            {i: own[i] + (slow[i] - own[i]) * crowd.get(i, 0.0) / others for i in own}
            for own, slow, crowd in zip(alone, beside, crowds, strict=True)
        ]
        before, steady = steady, pipeline.steady(_cost(times), journeys)
        if abs(steady.batch_s - before.batch_s) < 1e-3 * before.batch_s:
            break
    return Prediction(
        samples_per_second=job.course.batch_size / steady.batch_s,
        batch_s=steady.batch_s,
        bubble_fraction=steady.bubble_fraction,
        stage_s=steady.busy_s,
        activation_bytes=_activation_bytes(job, quiet, steady.peak_live),
        parameter_bytes=_parameter_bytes(job, quiet),
        edges=_edge_loads(job, carriers, steady.batch_s),
        averaged_bytes=_averaged_bytes(job, quiet),
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
    workers = max(Counter(job.homes).values(), default=len(job.seats))
    if workers == 1 or job.devices[0] != "cpu":
        return 0
    return max(0, min(workers, usable_cores() // job.threads) - 1)


def _cost(times: Sequence[Times]) -> Cost:
    """Times as the simulator asks for them."""
    return lambda stage, instruction: times[stage].get(instruction, 0.0)


def _activation_bytes(job: Job, profile: Source, live: Sequence[int]) -> list[int]:
    """For each stage: under local learning one module's, else those of all forwards at once."""
    image = ValueSpec((job.image.channels, job.image.height, job.image.width), torch.float32)
    first = bytes_of([image, *job.task.targets.values()])
    local, slots = job.local_learning, Pipeline.of(job).slots
    result = []
    for stage in range(job.stages):
        numbers = job.layout.of(stage)
        saved, beside = zip(
            *(_chunk_bytes(job, job.layout.chunks[number], profile) for number in numbers),
            strict=True,
        )
        # The first stage loads a batch as a whole; the others get no more than they hold.
        entering = job.course.batch_size * first if 0 in numbers else 0
        for channel, count in slots.items():
            if channel.target == stage and channel.kind == "activations":
                specs = job.specs[channel.chunk].values()
                entering += (count - job.depth) * job.microbatch_size * bytes_of(specs)
        if local:
            most = live[stage] * max(map(sum, zip(saved, beside, strict=True)))
        else:
            most = round(live[stage] * sum(saved) / len(saved)) + max(beside)
        result.append(most + entering)
    return result


def _chunk_bytes(job: Job, chunk: Chunk, profile: Source) -> tuple[int, int]:
    """What a chunk keeps of each forward until its backward, and the most that it has beside that.

    Beside it has the auxiliary network's graph, which is gone before the backward begins, or what
    the backward of a unit computes again.
    """
    units = [profile.unit(index) for index in chunk.units]
    ends = end_of(job, chunk, profile).saved_bytes
    beside = max(ends, *(unit.recomputed_bytes for unit in units))
    return sum(unit.saved_bytes for unit in units), beside


def _parameter_bytes(job: Job, profile: Source) -> list[int]:
    """For each stage, of its units and auxiliary networks."""
    result = []
    for stage in range(job.stages):
        chunks = [job.layout.chunks[number] for number in job.layout.of(stage)]
        ends = [end_of(job, chunk, profile) for chunk in chunks]
        params = sum(p.params for p in (*map(profile.unit, job.layout.units(stage)), *ends))
        result.append(round(params * profile.parameter_bytes) + _watched_bytes(job, stage))
    return result


def _watched_bytes(job: Job, stage: int) -> int:
    """What a stage keeps of weights that losses watch."""
    kept: dict[int, int] = {}  # by unit
    for watcher, watch in job.routes.watches.items():
        if job.layout.chunks[job.routes.watched(watcher)].stage == stage:
            older = (watch.lag - 1) * weight_bytes(job, watcher)
            kept[watch.unit] = max(older, kept.get(watch.unit, 0))
    rooms = job.channels.items()
    slots = (r.slots * r.size for c, r in rooms if c.kind == "weights" and c.target == stage)
    return sum(kept.values()) + sum(slots)


def _averaged_bytes(job: Job, profile: Source) -> int:
    """What a replica sends of its gradients, at the stage that has the most."""
    if job.replicas == 1:
        return 0
    gradients = (
        sum(gradient_bytes(job, job.layout.chunks[n], profile) for n in job.layout.of(stage))
        for stage in range(job.stages)
    )
    return ring_bytes(max(gradients), job.replicas)


def _edge_loads(job: Job, carriers: Carriers, batch_s: float) -> list[EdgeLoad]:
    """What travels between each two stages."""
    directions: Counter[tuple[int, int]] = Counter()
    for number, sent in enumerate(sent_bytes(job), 1):
        before, here = (job.layout.chunks[n].stage for n in (number - 1, number))
        directions[before, here] += sent.activations
        directions[here, before] += sent.gradients
    weights: Counter[tuple[int, int]] = Counter()  # whatever the batch is, in each replica
    for watcher in job.routes.watches:
        ends = job.routes.watched(watcher), watcher
        source, target = (job.layout.chunks[n].stage for n in ends)
        weights[source, target] += job.replicas * weight_bytes(job, watcher)
    loads = []
    for first, second in neighbours(job):
        sizes = [
            carriers.size(first, second, job.course.batch_size * directions[way]) + weights[way]
            for way in ((first, second), (second, first))
        ]
        link, busy = carriers.of_edge(first, second), None
        if link is not None:
            busy = max(sizes) / job.replicas / link.bytes_per_second / batch_s
        crosses = carriers.crosses(first, second)
        loads.append(EdgeLoad((first, second), sum(sizes), crosses, busy))
    return loads


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
    for stage in range(job.stages):
        for index in job.layout.units(stage):
            unit = measured.unit(index)
            times = (unit.forward_s, unit.backward_s, measured.step_s * unit.params)
            forward, backward, step = (1000 * seconds for seconds in times)
            row = f"  {names[index]:<14}{forward:9.3f}{backward:10.3f}{step:8.3f}"
            lines.append(f"{row}  {stage}")
    for stage in range(job.stages):
        ends = [end_of(job, job.layout.chunks[n], measured) for n in job.layout.of(stage)]
        losses = 1000 * whole / samples * sum(end.forward_s + end.backward_s for end in ends)
        total = 1000 * prediction.stage_s[stage]
        lines.append(f"  stage {stage}: {total:.3f} a batch, of which losses {losses:.3f}")
    speed_up = bp_batch_s(len(names), profile.at(whole)) / (whole / prediction.samples_per_second)
    lines.append(
        f"  predicted: {prediction.samples_per_second:.0f} samples/s, {speed_up:.2f} x the speed "
        f"of bp on one device, bubble {prediction.bubble_fraction:.4f}"
    )
    if stages_are_modules and len(job.layout.modules) > 1:
        cuts = setting("local.cuts", [names[module.start] for module in job.layout.modules[1:]])
        lines.append(f"  the training depends on these cuts; {word(cuts)} pins them")
    return lines
