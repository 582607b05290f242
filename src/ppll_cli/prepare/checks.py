"""Checks a job before its workers start."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ppll_cli.config.options import as_typed
from ppll_cli.config.targets import blaming
from ppll_cli.errors import ConfigError, DeadlockError, PpllError, ScheduleError, noted
from ppll_cli.job.job import Job
from ppll_cli.models.trace import Cost
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardWeight,
    Compute,
    Forward,
    Instruction,
    Measure,
    StartAverage,
)
from ppll_cli.pipeline.schedule import Place
from ppll_cli.pipeline.validation import validate, validate_evaluation
from ppll_cli.prepare.subject import Subject, is_own
from ppll_cli.prepare.trials import (
    check_averages,
    check_halves,
    check_losses,
    check_overlap,
    check_recompute,
)


def check_instructions(job: Job, subject: Subject) -> None:
    """Check a job's schedule, losses and units, by `check_plan` and `try_units`.

    Raises:
        ConfigError: One of them finds an error.
    """
    check_plan(job, subject)
    try_units(job, subject)


def trials_of(job: Job) -> frozenset[str]:
    """Return the names of the checks that `try_units` makes for a job, such as "recompute"."""
    needed = {
        "recompute": job.settings.recompute,
        "halves": job.halves,
        "overlap": any(map(_overlaps, job.streams())),
        "averages": job.replicas > 1 and not job.settings.sync_batchnorm,
    }
    return frozenset(name for name, is_needed in needed.items() if is_needed)


def try_units(job: Job, subject: Subject) -> None:
    """Check on random values that units get correct gradients with the options of the job.

    Raises:
        ConfigError: A unit's gradients may be wrong with recomputation, with split backward passes,
            with a second forward before the backward of the first, or with averages over replicas.
    """
    trials = trials_of(job)
    schedule = as_typed("schedule", job.settings.schedule["_target_"])
    if "recompute" in trials:
        check_recompute(subject.units, subject.ends.before)
    if "halves" in trials:
        check_halves(schedule, subject.units, subject.ends.before)
    # The program's own units change no state in place, and use no reentrant checkpoints.
    others = [index for index, unit in enumerate(subject.units) if not is_own(unit)]
    units = [subject.units[index] for index in others]
    before = [subject.ends.before[index] for index in others]
    if "overlap" in trials:
        check_overlap(schedule, units, before, recompute=job.settings.recompute)
    if "averages" in trials:
        check_averages(job.replicas, units, before)


def _overlaps(stream: Iterable[Instruction]) -> bool:
    waiting: Counter[int] = Counter()
    for instruction in stream:
        match instruction:
            case Forward(chunk, _):
                waiting[chunk] += 1
                if waiting[chunk] > 1:
                    return True
            case Backward(chunk, _) | BackwardWeight(chunk, _):
                waiting[chunk] -= 1
    return False


def check_plan(job: Job, subject: Subject) -> None:
    """Check a job's schedule and losses, and whether units change inputs of their chunks in place.

    Raises:
        ConfigError: The schedule is wrong, or does not allow `compile` or `recompute`; or a unit
            changes an input of its chunk; or a loss cannot read the dtype of a tensor.
    """
    _check_streams(job)
    _check_backwards(job)
    _check_inputs(job, subject)
    check_losses(job, subject)


def _check_streams(job: Job) -> None:
    key, path = as_typed("schedule", job.settings.schedule["_target_"])
    if hasattr(job.make_schedule(), "held"):
        problem = "its method held() is no longer called: the program counts slots itself"
        raise ConfigError(key, path, problem, "remove it, and yield only compute instructions")
    try:
        with blaming(key, path, "its instructions"):
            _check_calls(job)
            # For each number of micro-batches, this makes, checks and simulates the instructions.
            _ = job.channels
            _ = job.halves
            _check_averages(job)
    except (ScheduleError, DeadlockError) as error:
        raise ConfigError(key, path, _in_one_line(error)) from None


def _in_one_line(error: PpllError) -> str:
    head, *lines = (" ".join(line.split()) for line in str(error).splitlines())
    notes = getattr(error, "__notes__", ())
    return "; ".join([f"{head} {'; '.join(lines)}" if lines else head, *notes])


def _check_calls(job: Job) -> None:
    # If a schedule yields other instructions when it is called again, the run cannot be repeated,
    # and machines could wait for each other for ever.
    schedules = job.make_schedule(), job.make_schedule()
    for stage in range(job.stages):
        for count in sorted(job.microbatch_counts()):
            with noted(f"for {count} micro-batch(es)"):
                place = job.place(stage, count)
                _check_equal(stage, "batch", *(validate(place, s.batch(place)) for s in schedules))
        for count in sorted(job.course.evaluation_counts()):
            with noted(f"for {count} evaluation batch(es)"):
                at = Place(stage, job.routes, count)
                found = (validate_evaluation(at, s.evaluation(at)) for s in schedules)
                _check_equal(stage, "evaluation", *found)


def _check_equal(
    stage: int, method: str, first: Iterable[Compute | Measure], second: Iterable[Compute | Measure]
) -> None:
    for one, other in zip(first, second, strict=False):  # no valid order is a prefix of another
        if one != other:
            raise ScheduleError(
                f"{method}() yielded {one} for stage {stage}, and {other} when it was called "
                "again; it must always yield the same instructions, so that a run can be repeated"
            )


def _check_averages(job: Job) -> None:
    for samples in {*job.course.batch_sizes()}:
        counts = sorted({len(job.microbatches(samples, each)) for each in range(job.replicas)})
        for stage in range(job.stages):
            first, *others = ((_averaged(job, stage, count), count) for count in counts)
            for order, count in others:
                if order != first[0]:
                    raise ScheduleError(
                        f"stage {stage} ends the backwards of its chunks in the order {first[0]} "
                        f"for {first[1]} micro-batch(es), and {order} for {count}; the replicas' "
                        f"shares of a batch of {samples} samples have these numbers of "
                        "micro-batches, and need the same order, because replicas average the "
                        "gradients of a chunk together"
                    )


def _averaged(job: Job, stage: int, count: int) -> list[int]:
    return [i.chunk for i in job.training(stage, count) if isinstance(i, StartAverage)]


def _check_backwards(job: Job) -> None:
    # Operations that use parameters run in both halves of a backward (see `job.halves`). Compiled
    # and recomputed networks are not supported there.
    for key in ("compile", "recompute"):
        if getattr(job.settings, key) and job.halves:
            splits = "this schedule splits each backward into halves"
            remedy = f"use {key}=false, or another schedule"
            raise ConfigError(key, True, f"{splits}, which {key}=true does not allow", remedy)


def _check_inputs(job: Job, subject: Subject) -> None:
    # torch forbids such a change only if the input needs a gradient. Otherwise the change would
    # reach all tensors that share memory with the input. Tensors on different stages never share
    # memory, so results could depend on the cuts.
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


def check_batch_norm(job: Job, units: Sequence[Cost], auxiliary: Sequence[Cost]) -> None:
    """Check that every batch of the run suits the model's BatchNorm layers.

    torch cannot train such a layer on a single value per channel. If replicas synchronise
    BatchNorm, each batch must instead give them equally many micro-batches.

    `units` and `auxiliary` have the cost of each unit and of each auxiliary network.

    Raises:
        ConfigError: A batch does not suit these layers.
    """
    if job.settings.sync_batchnorm and job.replicas > 1:
        _check_equal_counts(job)
        # Replicas wait for each other in each micro-batch, so their numbers must be equal. A layer
        # sees the samples of all replicas, so it always has at least two values per channel.
        return
    last = job.replicas - 1  # the replica with the smallest share
    smallest = min(job.microbatches(n, last)[-1] for n in {*job.course.batch_sizes()})
    owners = [*job.names, *(f"the auxiliary network of module {m}" for m in range(len(auxiliary)))]
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


def _check_equal_counts(job: Job) -> None:
    for samples in {*job.course.batch_sizes()}:
        counts = {len(job.microbatches(samples, replica)) for replica in range(job.replicas)}
        if len(counts) > 1:
            what = f"a batch of {samples} samples into different numbers of micro-batches"
            remedy = "use data.drop_last=true, another batch_size or fewer schedule.microbatches"
            raise ConfigError("sync_batchnorm", True, f"replicas would split {what}", remedy)
