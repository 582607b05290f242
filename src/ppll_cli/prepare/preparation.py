"""Prepares a job from settings, and checks everything that can be checked without workers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from ppll_cli.config.settings import Settings
from ppll_cli.data.files import cache_root
from ppll_cli.job.devices import check_processors, devices_here
from ppll_cli.job.ends import ModuleEnd
from ppll_cli.job.job import Job
from ppll_cli.job.learning_rate import note_on_epochs
from ppll_cli.job.schedule import schedule_of
from ppll_cli.leaves.names import counted
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import Criterion
from ppll_cli.models.trace import Cost
from ppll_cli.pipeline.layout import Layout
from ppll_cli.pipeline.routes import Routes, find_routes
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.predict.chain import Setup
from ppll_cli.predict.fingerprint import source_digest
from ppll_cli.predict.kept import Kept
from ppll_cli.predict.meter import Meter
from ppll_cli.predict.profile import Profile
from ppll_cli.predict.speed import report
from ppll_cli.prepare.checks import check_batch_norm, check_instructions
from ppll_cli.prepare.course import course_of, largest_micro_batch
from ppll_cli.prepare.cutting import cut, placed, weights
from ppll_cli.prepare.recovery import recovering
from ppll_cli.prepare.spread import Machine, spread, threads_of
from ppll_cli.prepare.subject import Subject, examine
from ppll_cli.prepare.trials import check_units
from ppll_cli.prepare.weights import find_weights

NO_BANK_LOCAL = (
    "fba=on is the same as local=fba here: no auxiliary network has an earlier module to read from"
)
NO_BANK_WHOLE = "fba=on has no effect here: only ll and ppll use a feature bank"
"""Notes for a run with `fba=on` in which no auxiliary network reads the feature bank."""


@dataclass(frozen=True)
class Prepared:
    """A job, and facts that were found while it was prepared.

    Attributes:
        emulated: Whether several workers share a CUDA device.
        notes: Notes for the user, a line each.
        weights: What was found in the file of initial weights (see `FoundWeights.report`); None if
            the user gave no such file.
    """

    job: Job
    subject: Subject
    emulated: bool
    notes: tuple[str, ...]
    weights: Mapping[str, Any] | None = None

    @property
    def auxiliary_costs(self) -> tuple[Cost, ...]:
        """Cost of each module's auxiliary network."""
        return self.subject.auxiliary_costs(self.job.layout.modules)

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the first units of modules 1, 2, ..."""
        job = self.job
        return tuple(job.names[module.start] for module in job.layout.modules[1:])


def prepare(
    settings: Settings, run_dir: str, machines: Sequence[Machine] = (), machine: int = 0
) -> Prepared:
    """Prepare the job that the settings describe.

    Args:
        settings: The settings of the run.
        run_dir: Path of the run directory.
        machines: All machines of the run; empty if there is only one.
        machine: Number of this machine.

    Raises:
        ConfigError: The settings do not fit the model, the data, one another or this machine.
        WorkerFailedError: With `partition=profile`, the model cannot be measured.
        RunFailedError: With `partition=profile`, the measuring process cannot be started.
    """
    schedule = schedule_of(settings.schedule)
    notes = [*_notes_on_schedule(settings, schedule)]
    if note := note_on_epochs(settings.optim, settings.epochs):
        notes.append(note)
    notes += _notes_on_unused(settings, len(machines))
    workers = settings.replicas if schedule.one_stage else settings.devices_asked
    homes: tuple[int, ...] = ()
    if machines:
        (devices, homes), emulated = spread(settings, workers, machines), False
        threads = threads_of(settings, machines, homes)
        if "cpu" in devices and settings.device == "auto":
            notes.append(f"there are too few CUDA devices, so {workers} worker(s) run on CPU")
    else:
        devices, emulated = devices_here(settings, workers, notes)
        threads = settings.threads_per_worker
    settings = settings.model_copy(update={"threads": threads})
    here = len(devices) if not homes else max(map(homes.count, homes))
    check_processors(settings, devices[:here], notes)

    subject = examine(settings)
    check_units(settings, subject)
    notes += _notes_on_counters(subject)
    profile = weights = None
    measures = settings.partition.name == "profile" and settings.stages_asked > 1
    if measures and (not schedule.one_stage or _stages_are_modules(settings, schedule)):
        profile = profile_of(settings, subject, devices[0])
    with closing(profile) if profile is not None else nullcontext():
        job = assemble(settings, subject, schedule, devices, profile, run_dir, notes)
        job = replace(job, homes=homes)
        if settings.weights is not None:
            found = find_weights(settings.weights, settings.weights_partial, subject.units)
            job, weights = replace(job, weights=found.weights), found.report()
            notes.append(f"weights={settings.weights}: {found.told()}")
        check_instructions(job, subject)
        job = recovering(job, subject, notes, machine)
        if profile is not None:
            notes += report(job, profile, _stages_are_modules(settings, schedule))
    return Prepared(job, subject, emulated, tuple(notes), weights)


def profile_of(settings: Settings, subject: Subject, device: str) -> Profile:
    """Create a `Profile` that measures on `device`, with batches of `settings.batch_size`."""
    site, threads = replace(subject.ends.site, units=()), settings.threads_per_worker
    setup = Setup(settings, subject.local, site, settings.batch_size, device, threads)
    source = source_digest(subject.model, subject.ends.method)
    kept = Kept(cache_root().parent / "profile")
    return Profile(subject.ends, setup, source, kept, Meter(device, setup.numerics))


def assemble(
    settings: Settings,
    subject: Subject,
    schedule: Schedule,
    devices: tuple[str, ...],
    profile: Profile | None,
    run_dir: str,
    notes: list[str],
) -> Job:
    """Cut the model into stages, and return the job.

    `profile` is used only with `partition=profile`. Notes for the user are appended to `notes`.

    Raises:
        ConfigError: The settings do not fit the data, the model or one another.
        WorkerFailedError: `profile` is used, and the model cannot be measured.
        RunFailedError: `profile` is used, and its measuring process cannot be started.
    """
    course = course_of(settings, schedule, subject)
    if settings.partition.name != "profile":
        profile = None
    measuring = profile and profile.at(largest_micro_batch(settings, schedule))
    layout = cut(settings, schedule, subject, weights(settings, subject, measuring))
    found, specs = subject.at_ends(layout.modules)
    routes = _routes(layout, subject, found, specs)
    form = subject.evaluation
    evaluated = None if form is None else _specs(routes, form.ends.specs(layout.modules))
    job = Job(
        settings=settings,
        local=subject.local,
        course=course,
        input_spec=subject.input_spec,
        task=subject.task,
        routes=routes,
        specs=_specs(routes, specs),
        names=subject.names,
        features=tuple(subject.ends.site.features),
        evaluation_specs=evaluated,
        devices=devices,
        run_dir=run_dir,
        watched={w.unit: subject.watched(w.unit) for w in routes.watches.values()},
    )
    if settings.fba.enabled and settings.fba.fusion != "none" and not any(map(_reads_bank, found)):
        notes.append(NO_BANK_LOCAL if schedule.local else NO_BANK_WHOLE)
    check_batch_norm(job, subject.costs, subject.auxiliary_costs(layout.modules))
    return job


def _routes(
    layout: Layout,
    subject: Subject,
    found: Sequence[ModuleEnd],
    specs: Sequence[Mapping[str, ValueSpec]],
) -> Routes:
    at_ends = [(m.stop - 1, end) for m, end in zip(layout.modules, found, strict=True)]
    ends = {last: end.follows for last, end in at_ends}
    watches = {last: end.watches for last, end in at_ends if end.watches is not None}

    def differentiable(unit: int, name: str) -> bool:
        return specs[unit][name].differentiable

    return find_routes(layout, subject.units, ends, watches, differentiable)


def _reads_bank(end: ModuleEnd) -> bool:
    criterion = end.follows[-1]
    return isinstance(criterion, Criterion) and len(criterion.features) > 1


def _specs(
    routes: Routes, before: Sequence[Mapping[str, ValueSpec]]
) -> tuple[Mapping[str, ValueSpec], ...]:
    entering = [routes.reads[0] | routes.passing(0), *(route.names for route in routes.into[1:])]
    chunks = zip(routes.layout.chunks, entering, strict=True)
    return tuple({n: before[chunk.units.start][n] for n in names} for chunk, names in chunks)


def _stages_are_modules(settings: Settings, schedule: Schedule) -> bool:
    return schedule.local and not settings.fixes_modules


def _notes_on_unused(settings: Settings, machines: int) -> Iterator[str]:
    for key, needs in settings.optim.unused.items():
        value = json.dumps(getattr(settings.optim, key))
        yield f"optim.{key}={value} has no effect: it is only for {needs}"
    if settings.sync_batchnorm and settings.replicas == 1:
        yield "sync_batchnorm=true has no effect: it is only for replicas=2 or more"
    if machines < 2 and (dtype := settings.transport.get("wire_dtype")) is not None:
        yield f"transport.wire_dtype={dtype} has no effect: it is only for several machines"


def _notes_on_counters(subject: Subject) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for name, traced in zip(subject.names, subject.ends.traced, strict=True):
        for attribute in traced.counters:
            found.setdefault(attribute, []).append(name)
    for attribute, (unit, *others) in found.items():
        more = f" (and {counted(len(others), 'other unit')})" if others else ""
        yield (
            f"each forward pass of unit {unit!r}{more} changes its attribute {attribute!r}, which "
            "no checkpoint contains and no other process sees: if results depend on it, keep it in "
            "a buffer, so that a resumed run gets the same results as an uninterrupted run"
        )
    for attribute in subject.ends.task_counters:
        yield (
            f"each loss changes the attribute {attribute!r} of the task, which no checkpoint "
            "contains and no other process sees: if the loss depends on it, results depend on the "
            "schedule, and a resumed run gets other results than an uninterrupted run"
        )


def _notes_on_schedule(settings: Settings, schedule: Schedule) -> Iterator[str]:
    asked, parts = settings.schedule.get("microbatches"), schedule.microbatches
    if asked not in (None, parts):
        yield f"schedule.microbatches={asked}: this schedule does not split batches, so 1 is used"
    replicas, stages = settings.replicas, settings.stages_asked
    if schedule.one_stage and stages > 1:
        where = "one device" if replicas == 1 else "one device for each replica"
        what = "; it trains the same modules as ppll" if schedule.local else ""
        yield f"gpus={settings.devices_asked}: this schedule uses {where}{what}"
    if replicas > 1:
        norm = "" if settings.sync_batchnorm else ", and BatchNorm if the model has any,"
        yield (
            f"replicas={replicas}: each replica trains on its share of a batch; losses that "
            f"compare the samples of a batch{norm} see only this share"
        )
    if len(placed(schedule, stages)) > stages > parts:
        yield (
            f"schedule.microbatches={parts}: fewer than the {stages} stages, so "
            f"stages wait for each other more than with {stages} micro-batches"
        )
    if parts > 1:
        yield (
            f"each batch is split into {parts} micro-batches; BatchNorm, if the "
            "model has any, uses the statistics of each micro-batch alone"
        )
