"""Makes the commands that users see, to resume a run or to compare it with other schedules."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppll_cli.config.changes import PRESETS
from ppll_cli.config.commands import command, key_of, setting
from ppll_cli.config.sections import BY_EPOCHS
from ppll_cli.config.settings import Settings
from ppll_cli.config.targets import targets_in
from ppll_cli.errors import ConfigError
from ppll_cli.job.devices import devices_here
from ppll_cli.job.job import Job
from ppll_cli.leaves import cuda
from ppll_cli.leaves.names import class_path
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.schedules.bp import BackPropagation
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.ll import LocalLearning
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.prepare.checks import check_batch_norm
from ppll_cli.prepare.cutting import Weights, cut
from ppll_cli.prepare.preparation import Prepared

COMPARED: Mapping[str, Schedule] = {
    "bp": BackPropagation(),
    "ll": LocalLearning(),
    "gpipe": GPipe(microbatches=4),  # as in conf/schedule/gpipe.yaml
    "ppll": PPLL(),
}
"""The schedules that `comparison` considers. The keys are the values of `schedule=`."""

OWN = ("schedule", "gpus", "objective", "max_minutes", "recover")
"""Keys of overrides that `comparison` leaves out of its command.

`comparison` sets `schedule` and `gpus` itself. `objective` is only for sweepers that search for
settings. `max_minutes` is a limit for this run alone. Most schedules refuse `recover=stage`."""

LENGTH = ("epochs", "max_steps")
"""Keys that say when a run is complete."""

LONGEST = 1000
"""Largest length in characters of a command that `comparison` returns."""


def resume_command(
    run_dir: Path,
    options: Sequence[str],
    changes: Sequence[str] | None,
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    recorded: Mapping[str, Any] | None = None,
) -> str:
    """Return the command that resumes a run.

    Args:
        run_dir: The run directory.
        options: Command-line options that name folders of configurations, such as `--config-dir`.
        changes: The overrides that turn the defaults into `config`; None if unknown.
        config: The run's configuration.
        choices: The chosen option of each configuration group, such as {"schedule": "ppll"}.
        recorded: The configuration with which the run was started; None if it was never resumed.
    """
    classes = [change for change in changes or () if key_of(change).endswith("._target_")]
    if changes is None or any(choices.get(preset, "None") != "None" for preset in PRESETS):
        # `resume` does not read a preset's file again, and imports a user's class only if the
        # command line names it. So the command names the user's classes in the preset.
        known = {key_of(change) for change in classes}
        found = [(key, path) for key, path in targets_in(config) if key not in known]
        classes += [setting(key, path) for key, path in found if not path.startswith("ppll_cli.")]
    # A resumed run is tracked only if the command line names the tracker.
    tracker = choices.get("tracker", "none")
    again = [] if tracker == "none" else [setting("tracker", tracker)]
    if recorded is not None:
        # `config.json` keeps the length with which the run was started. Without these overrides,
        # the next resume would use this length, and the run could end at once.
        again += [setting(k, config[k]) for k in LENGTH if config.get(k) != recorded.get(k)]
    return command("ppll-run", *options, setting("resume", str(run_dir)), *again, *classes)


def how_to_train_longer(settings: Settings, job: Job) -> str:
    """Return what the user can do so that a completed run trains for more steps.

    `job` is the job of the resumed run: its `start` is the number of steps done.
    """
    epochs = settings.epochs * job.course.steps_per_epoch
    if job.start < epochs:
        return "give a larger max_steps"
    if settings.optim.schedule in BY_EPOCHS:
        return "start a new run with more epochs, because the learning rate depends on their number"
    limited = settings.max_steps is not None and settings.max_steps <= epochs
    also = " and a larger max_steps" if limited else ""
    return f"give more epochs{also}"


def comparison(
    settings: Settings,
    prepared: Prepared,
    options: Sequence[str],
    changes: Sequence[str],
    *,
    resumed: bool,
) -> str | None:
    """Return a command that starts a sweep, which compares a run with other schedules.

    Return None if fewer than two schedules fit the run, or if the command is too long. `options`
    are command-line options that name folders of configurations. `changes` are the overrides that
    turn the defaults into the run's configuration. `resumed` says whether the run was resumed.
    """
    gpus = max(2, settings.devices_asked)
    job = prepared.job
    there = settings.model_copy(update={"gpus": gpus})
    beside = settings.device == "auto" and {*job.devices} == {"cpu"} and cuda.device_count()
    if beside:  # the run used the CPU; with `gpus` in the command, `auto` would use GPUs
        there = there.model_copy(update={"device": "cpu"})
    accepted = [name for name, one in COMPARED.items() if _accepts(there, prepared, one)]
    if len(accepted) < 2:
        return None
    given = [f"schedule={','.join(accepted)}", f"gpus={gpus}"]
    given += [change for change in changes if key_of(change).split(".")[0] not in OWN]
    if beside:
        given.append("device=cpu")
    if resumed and job.local_learning and not settings.fixes_modules:
        # A resumed run keeps its modules, even if it began with another number of stages.
        given.append(setting("local.cuts", list(prepared.cuts)))
    found = command("ppll-run", "--multirun", *options, *given)
    return found if len(found) <= LONGEST else None


def _accepts(settings: Settings, prepared: Prepared, schedule: Schedule) -> bool:
    workers = settings.replicas if schedule.one_stage else settings.devices_asked
    job = prepared.job
    local = dict(settings.local)
    if local.get("cuts") is not None and job.local_learning:
        local["cuts"] = list(prepared.cuts)
    elif isinstance(local.get("cuts"), str):
        local["cuts"] = None
    try:
        devices_here(settings, workers, [])
        if schedule.microbatches > settings.batch_size:
            return False
        keys = {"_target_": class_path(type(schedule)), "microbatches": schedule.microbatches}
        settings = settings.model_copy(update={"local": local, "schedule": keys})
        subject, weights = prepared.subject, Weights([1.0] * len(job.names))
        layout = cut(settings, schedule, subject, weights)
        routes = replace(job.routes, layout=layout)
        job = replace(job, settings=settings, routes=routes)
        auxiliary = prepared.auxiliary_costs if schedule.local else ()
        check_batch_norm(job, subject.costs, auxiliary)
    except ConfigError:
        return False
    return True
