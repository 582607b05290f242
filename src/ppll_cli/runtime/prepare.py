"""From settings to a job: everything that can be checked before a worker starts is checked here."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from ppll_cli.data.dataset import cache_root
from ppll_cli.errors import ConfigError
from ppll_cli.local.method import (
    LocalMethod,
    Site,
)
from ppll_cli.machine import processor
from ppll_cli.models.unit import IMAGE, Model, Unit, check_names
from ppll_cli.partition.layout import edges
from ppll_cli.partition.trace import Cost, trace
from ppll_cli.runtime.cutting import cut, weights
from ppll_cli.runtime.ends import Ends
from ppll_cli.runtime.items import Course, split_batch
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.profile import Profile, report, source_digest
from ppll_cli.schedules.schedule import Schedule
from ppll_cli.settings import Settings, usable_cores
from ppll_cli.targets import make
from ppll_cli.tasks.task import Task
from ppll_cli.values import ValueSpec


@dataclass(frozen=True)
class Prepared:
    """A job, and what was found while it was prepared.

    Attributes:
        job: What the workers are given.
        units: Names of the model's units.
        unit_costs: Of each unit.
        auxiliary_costs: Of each module's auxiliary network.
        emulated: Whether several workers share a device.
        notes: What the user should be told.
    """

    job: Job
    units: tuple[str, ...]
    unit_costs: tuple[Cost, ...]
    auxiliary_costs: tuple[Cost, ...]
    emulated: bool
    notes: tuple[str, ...]


def prepare(settings: Settings, run_dir: str) -> Prepared:
    """Build the job.

    Raises:
        ConfigError: The settings do not fit the model, the data, one another or this machine.
    """
    notes: list[str] = []
    schedule: Schedule = make("schedule", settings.schedule)
    _note_schedule(settings, schedule, notes)
    devices, emulated = _devices(
        settings, 1 if schedule.one_stage else settings.stages_asked, notes
    )

    _check_processors(settings, devices, notes)

    dataset = make("data", settings.data)
    dataset.prepare()
    splits = dataset.load()
    samples = {name: len(split) for name, split in splits.items()}
    image, task = dataset.image_spec(splits), dataset.task
    course = _course(settings, schedule, samples, dataset.drop_last)

    model: Model = make("model", settings.model)
    units = tuple(model.units(image, task))
    _check_units(units, task)
    shape = (image.channels, image.height, image.width)
    batch = {IMAGE: ValueSpec(shape, torch.float32), **task.targets}
    traced = trace(units, batch)

    local = {k: v for k, v in settings.local.items() if k not in ("modules", "cuts")}
    method = make("local", local)
    if not isinstance(method, LocalMethod):
        raise ConfigError(
            "local._target_",
            local["_target_"],
            "is no LocalMethod",
            f"derive it from {LocalMethod.__module__}.LocalMethod",
        )
    names = tuple(unit.name for unit in units)
    costs = tuple(unit.cost for unit in traced)
    features = tuple(unit.outputs[0] for unit in traced)
    finder = Ends(method, Site(0, (), units, features, image, task), traced, batch)
    partitions: Mapping[str, Sequence[str]] = getattr(model, "partitions", {})
    profile = None
    if settings.partition.name == "profile":
        profile = Profile(
            ends=finder,
            optim=settings.optim,
            samples=course.evaluation_size,
            device=torch.device(devices[0]),
            threads=settings.threads_per_worker,
            bf16=settings.precision == "bf16",
            conditions={
                "model": settings.model,
                "local": local,
                "image": asdict(image),
                "source": source_digest(model, method),
                "processor": processor(),
            },
            folder=cache_root().parent / "profile",
        )
    balanced = weights(settings.partition, costs, finder.cost, settings.batch_size, profile)
    layout = cut(settings, schedule, names, partitions, balanced)
    if profile is not None:
        notes += report(profile, layout, schedule, _stages_are_modules(settings, schedule))
        profile.save()
    found, specs = finder.all(layout.modules)
    auxiliary = tuple(end.cost for end in found)
    ends = {m.stop - 1: end.follows for m, end in zip(layout.modules, found, strict=True)}
    crossing = edges(units, layout.stages, ends, specs, backward=not schedule.local)

    job = Job(
        model=settings.model,
        data=settings.data,
        local=local,
        schedule=settings.schedule,
        local_learning=schedule.local,
        optim=settings.optim,
        course=course,
        image=image,
        task=task,
        layout=layout,
        features=features,
        edges=tuple(crossing),
        depth=settings.transport["depth"],
        devices=devices,
        threads=settings.threads_per_worker,
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        deterministic=settings.deterministic,
        compiled=settings.compile,
        run_dir=run_dir,
    )
    exported = any(len(end) > 1 for end in ends.values())
    if settings.fba.enabled and settings.fba.fusion != "none" and not exported:
        reason = "it is for ll and ppll" if not schedule.local else "no module has an earlier one"
        notes.append(f"fba=on: nothing reads a feature bank here; {reason}")
    _check_batch_norm(course, schedule, names, costs, auxiliary)
    return Prepared(job, names, costs, auxiliary, emulated, tuple(notes))


def _stages_are_modules(settings: Settings, schedule: Schedule) -> bool:
    """Whether what is trained depends on where the partition cuts."""
    fixed = settings.local.get("modules") is not None or settings.local.get("cuts") is not None
    return schedule.local and not fixed


def _note_schedule(settings: Settings, schedule: Schedule, notes: list[str]) -> None:
    asked = settings.schedule["microbatches"]
    if asked != schedule.microbatches:
        notes.append(f"schedule.microbatches={asked}: this schedule takes 1, and 1 is used")
    if schedule.one_stage and settings.stages_asked > 1:
        what = "the same modules as for ppll are trained, on one device" if schedule.local else ""
        notes.append(
            f"gpus={settings.stages_asked}: this schedule uses one device" + (what and f"; {what}")
        )
    if schedule.microbatches > 1:
        notes.append(
            f"BatchNorm, if the model has any, sees micro-batches: each batch is split into "
            f"{schedule.microbatches}"
        )


def _devices(settings: Settings, stages: int, notes: list[str]) -> tuple[tuple[str, ...], bool]:
    """The device of each stage, and whether stages share one."""
    found = torch.cuda.device_count() if settings.device != "cpu" else 0
    if settings.device == "cuda" and found == 0:
        raise ConfigError("device", "cuda", "there is no CUDA device", "use device=cpu")
    left_open = settings.device == "auto" and settings.gpus is None
    if found == 0 or (left_open and found < stages):
        if settings.device == "auto":
            reason = "there is no CUDA device" if found == 0 else f"there are {found} CUDA devices"
            notes.append(f"{reason}: {stages} worker(s) on CPU")
        return ("cpu",) * stages, False
    if found < stages and not settings.oversubscribe:
        raise ConfigError(
            "gpus",
            stages,
            f"there are {found} CUDA devices",
            f"use gpus={found}, device=cpu, or oversubscribe=true to share them",
        )
    return tuple(f"cuda:{stage % found}" for stage in range(stages)), found < stages


def _check_processors(settings: Settings, devices: Sequence[str], notes: list[str]) -> None:
    """What workers on CPU need of this machine."""
    if "cpu" not in devices:
        return
    if settings.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError(
            "compile",
            True,
            "torch.compile needs a C++ compiler for workers on CPU, and found none",
            "install g++, name one in the environment variable CXX, or use compile=false",
        )
    cores, busy = usable_cores(), settings.threads_per_worker * len(devices)
    if busy > cores:
        notes.append(
            f"{len(devices)} worker(s) with {settings.threads_per_worker} thread(s) each share "
            f"{cores} cores: they will wait for one another"
        )


def _course(
    settings: Settings, schedule: Schedule, samples: Mapping[str, int], drop_last: bool
) -> Course:
    if settings.batch_size > samples["train"]:
        raise ConfigError(
            "batch_size",
            settings.batch_size,
            f"the training set has {samples['train']} samples",
            f"use at most {samples['train']}",
        )
    if schedule.microbatches > settings.batch_size:
        raise ConfigError(
            "schedule.microbatches",
            schedule.microbatches,
            f"a batch of {settings.batch_size} samples cannot be split into more parts",
            f"use at most {settings.batch_size}, or a larger batch_size",
        )
    return Course(
        samples=samples,
        batch_size=settings.batch_size,
        drop_last=drop_last,
        # Memory is planned for training micro-batches, so evaluation takes no larger ones.
        evaluation_size=split_batch(settings.batch_size, schedule.microbatches)[0],
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        eval_every=settings.eval_every,
        checkpoint_every=settings.checkpoint.every,
    )


def _check_units(units: Sequence[Unit], task: Task) -> None:
    """Check what a user's own model returns."""
    if not units or not all(isinstance(unit, Unit) for unit in units):
        raise ConfigError("model", "", "its units() must return a list of at least one Unit")
    check_names([unit.name for unit in units])
    known = {IMAGE}
    for unit in units:
        missing = [name for name in unit.reads if name not in known]
        if missing:
            raise ConfigError(
                "model",
                "",
                f"unit {unit.name!r} reads {missing[0]!r}, which nothing before it makes",
                f"there are {', '.join(sorted(known))}",
            )
        for name in unit.writes:
            if name == IMAGE or name in task.targets:
                problem = f"unit {unit.name!r} writes {name!r}, which losses read as it was loaded"
                raise ConfigError("model", "", problem, "use another name")
        known.update(unit.writes)


def _check_batch_norm(
    course: Course,
    schedule: Schedule,
    names: Sequence[str],
    units: Sequence[Cost],
    auxiliary: Sequence[Cost],
) -> None:
    """Refuse to train BatchNorm on one value a channel, which torch cannot do."""
    smallest = min(split_batch(n, schedule.microbatches)[-1] for n in course.batch_sizes())
    owners = [*names, *(f"the auxiliary network of module {m}" for m in range(len(auxiliary)))]
    layers = [
        f"{layer} of {owner}"
        for owner, cost in zip(owners, [*units, *auxiliary], strict=True)
        for layer in cost.single_valued
    ]
    if smallest == 1 and layers:
        raise ConfigError(
            "batch_size",
            course.batch_size,
            f"leaves a micro-batch of one sample, of which {layers[0]} (BatchNorm) would see one "
            "value a channel",
            "use data.drop_last=true, another batch_size or fewer schedule.microbatches",
        )
