"""Checks a job before its workers start."""

from collections.abc import Sequence

from ppll_cli.config.options import as_typed
from ppll_cli.config.targets import blaming
from ppll_cli.errors import ConfigError, DeadlockError, PpllError, ScheduleError
from ppll_cli.job.course import Course
from ppll_cli.job.job import Job
from ppll_cli.models.trace import Cost
from ppll_cli.prepare.subject import Subject
from ppll_cli.prepare.trials import check_halves, check_recompute


def check_equal_counts(job: Job) -> None:
    """Refuse batches that replicas would split into different numbers of micro-batches.

    With synchronised BatchNorm, replicas wait for each other in every BatchNorm layer for every
    micro-batch, so they need the same number of micro-batches.
    """
    for samples in {*job.course.batch_sizes()}:
        counts = {len(job.microbatches(samples, replica)) for replica in range(job.replicas)}
        if len(counts) > 1:
            what = f"a batch of {samples} samples into different numbers of micro-batches"
            remedy = "use data.drop_last=true, another batch_size or fewer schedule.microbatches"
            raise ConfigError("sync_batchnorm", True, f"replicas would split {what}", remedy)


def check_shares(course: Course, replicas: int) -> None:
    """Refuse batches with fewer samples than there are replicas."""
    smallest = min(course.batch_sizes())
    if smallest < replicas:
        has = f"the last batch of an epoch has {smallest} sample(s)"
        remedy = "use data.drop_last=true, another batch_size or fewer replicas"
        raise ConfigError("replicas", replicas, f"{has}, fewer than one for each replica", remedy)


def check_instructions(job: Job, subject: Subject) -> None:
    """Refuse a schedule that does not train the model correctly.

    Raises:
        ConfigError: The schedule is wrong, or the model's units do not allow split backward passes
            or recomputation.
    """
    check_streams(job)
    check_backwards(job)
    check_inputs(job, subject)
    before = subject.at_ends(job.layout.modules)[1]
    if job.settings.recompute:
        check_recompute(subject.units, before)
    if job.halves:
        schedule = as_typed("schedule", job.settings.schedule["_target_"])
        check_halves(schedule, subject.units, before)


def check_streams(job: Job) -> None:
    """Refuse a schedule with wrong instructions, or whose stages would deadlock.

    The function checks and simulates the instructions of all stages, for every number of
    micro-batches into which a replica may split its samples of a batch.

    Raises:
        ConfigError: The schedule is wrong.
    """
    key, path = as_typed("schedule", job.settings.schedule["_target_"])
    if hasattr(job.make_schedule(), "held"):
        problem = "its method held() is no longer called: the program counts slots itself"
        raise ConfigError(key, path, problem, "remove it, and yield only compute instructions")
    try:
        with blaming(key, path, "its instructions"):
            _ = job.channels  # makes, checks and simulates all streams
            _ = job.halves
    except (ScheduleError, DeadlockError) as error:
        raise ConfigError(key, path, in_one_line(error)) from None


def in_one_line(error: PpllError) -> str:
    """Return an error's message in one line."""
    head, *lines = (" ".join(line.split()) for line in str(error).splitlines())
    return f"{head} {'; '.join(lines)}" if lines else head


def check_backwards(job: Job) -> None:
    """Refuse `compile` and `recompute` with a schedule that splits backward passes into halves.

    Together, the halves run parts of the forward pass's graph twice, which neither key allows.
    """
    for key in ("compile", "recompute"):
        if getattr(job.settings, key) and job.halves:
            splits = "this schedule splits each backward into halves"
            remedy = f"use {key}=false, or another schedule"
            raise ConfigError(key, True, f"{splits}, which {key}=true does not allow", remedy)


def check_inputs(job: Job, subject: Subject) -> None:
    """Refuse a unit that changes in place an input that its chunk receives, or a view of it.

    Torch does not allow this if a gradient of the input is sent back. Without gradients, the values
    of other tensors would depend on the stages: on one stage, two tensors may share memory, and the
    change affects both; between two stages each tensor has a slot, and the change affects only one.
    """
    key, path = as_typed("model", job.settings.model["_target_"])
    for chunk, specs in zip(job.layout.chunks, job.specs, strict=True):
        received = {*specs}
        for index in chunk.units:
            unit, traced = subject.units[index], subject.ends.traced[index]
            changed = [unit.reads[number] for number in traced.changed]
            if wrong := [name for name in changed if name in received]:
                where = f"unit {unit.name!r} changes its input {wrong[0]!r} in place"
                problem = f"{where}, but the data set or another chunk has made this tensor"
                remedy = "make a new tensor, for example with inplace=False"
                raise ConfigError(key, path, problem, remedy)
            views = {unit.writes[o] for i, o in traced.shared if unit.reads[i] in received}
            received = received - {*unit.writes} | views


def check_batch_norm(
    job: Job, names: Sequence[str], units: Sequence[Cost], auxiliary: Sequence[Cost]
) -> None:
    """Refuse to train BatchNorm on a single value per channel, which torch cannot do."""
    if job.settings.sync_batchnorm and job.replicas > 1:
        return  # each layer sees at least one sample of every replica
    last = job.replicas - 1  # the replica with the smallest share
    smallest = min(job.microbatches(n, last)[-1] for n in {*job.course.batch_sizes()})
    owners = [*names, *(f"the auxiliary network of module {m}" for m in range(len(auxiliary)))]
    layers = [
        f"{layer} of {owner}"
        for owner, cost in zip(owners, [*units, *auxiliary], strict=True)
        for layer in cost.single_valued
    ]
    if smallest == 1 and layers:
        one = f"{layers[0]} (BatchNorm) would see only one value per channel"
        problem = f"leaves a micro-batch of one sample, in which {one}"
        remedy = "use data.drop_last=true, another batch_size or fewer schedule.microbatches"
        remedy += " or replicas, or sync_batchnorm=true" if last else ""
        raise ConfigError("batch_size", job.course.batch_size, problem, remedy)
