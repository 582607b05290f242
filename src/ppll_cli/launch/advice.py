"""Commands for the user to copy: go on with a run, or compare it with other schedules."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ppll_cli.config.changes import PRESETS
from ppll_cli.config.commands import command, key_of, setting
from ppll_cli.config.settings import Settings
from ppll_cli.config.targets import targets_in
from ppll_cli.errors import ConfigError
from ppll_cli.job.devices import devices_here
from ppll_cli.leaves.names import class_path
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.schedules.bp import BackPropagation
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.ll import LocalLearning
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.prepare.checks import check_batch_norm
from ppll_cli.prepare.cutting import Weights, cut
from ppll_cli.prepare.preparation import Prepared

MICROBATCHES = 4
"""Micro-batches of gpipe; its option `schedule=gpipe` has the same number."""

COMPARED: Mapping[str, Schedule] = {
    "bp": BackPropagation(),
    "ll": LocalLearning(),
    "gpipe": GPipe(microbatches=MICROBATCHES),
    "ppll": PPLL(),
}
"""The schedules with which a run is worth comparing, by the names of their options."""

OWN = ("schedule", "gpus", "objective", "max_minutes")
"""Keys whose overrides the comparison leaves out.

It sets `schedule` and `gpus` itself, only a sweeper needs `objective`, and `max_minutes` is meant
for this run alone.
"""

LONGEST = 1000
"""Longest command, in characters, that is shown without the user having asked for it."""


def go_on(
    run_dir: Path,
    options: Sequence[str],
    changes: Sequence[str] | None,
    config: Mapping[str, Any],
    choices: Mapping[str, str],
) -> str:
    """Return the command that goes on with a run.

    It repeats classes that are given as overrides, because `resume` imports no class that only
    the run directory names.

    Args:
        run_dir: The run directory.
        options: Options of the command line that say where configurations are.
        changes: The overrides that turn the defaults into the configuration; None: unknown.
        config: The run's configuration.
        choices: The option chosen in each group.
    """
    classes = [change for change in changes or () if key_of(change).endswith("._target_")]
    if changes is None or any(choices.get(preset, "None") != "None" for preset in PRESETS):
        # `resume` does not compose a preset again, so the classes that it names are given.
        known = {key_of(change) for change in classes}
        found = [(key, path) for key, path in targets_in(config) if key not in known]
        classes += [setting(key, path) for key, path in found if not path.startswith("ppll_cli.")]
    tracker = choices.get("tracker", "none")  # a resumed run is tracked only if asked for again
    again = [] if tracker == "none" else [setting("tracker", tracker)]
    return command("ppll-run", *options, setting("resume", str(run_dir)), *again, *classes)


def comparison(
    settings: Settings,
    prepared: Prepared,
    options: Sequence[str],
    changes: Sequence[str],
    *,
    resumed: bool,
) -> str | None:
    """Return the sweep that compares a run with other schedules; None if fewer than two would run.

    Args:
        settings: Settings of the run.
        prepared: The run.
        options: Options of the command line that say where configurations are.
        changes: The overrides that turn the defaults into the configuration.
        resumed: Whether the run was resumed.
    """
    gpus = max(2, settings.devices_asked)
    job = prepared.job
    there = settings.model_copy(update={"gpus": gpus})
    beside = settings.device == "auto" and {*job.devices} == {"cpu"} and torch.cuda.device_count()
    if beside:  # otherwise a schedule that needs only one device would take the GPU
        there = there.model_copy(update={"device": "cpu"})
    accepted = [name for name, one in COMPARED.items() if _accepts(there, prepared, one)]
    if len(accepted) < 2:
        return None
    given = [f"schedule={','.join(accepted)}", f"gpus={gpus}"]
    given += [change for change in changes if key_of(change).split(".")[0] not in OWN]
    if beside:
        given.append("device=cpu")
    fixed = settings.local.get("cuts") is not None or settings.local.get("modules") is not None
    if resumed and job.local_learning and not fixed:  # it may have begun with other stages
        given.append(setting("local.cuts", list(prepared.cuts)))
    found = command("ppll-run", "--multirun", *options, *given)
    return found if len(found) <= LONGEST else None


def _accepts(settings: Settings, prepared: Prepared, schedule: Schedule) -> bool:
    """Return whether the run would start with another schedule and these devices."""
    workers = settings.replicas if schedule.one_stage else settings.devices_asked
    job = prepared.job
    local = dict(settings.local)
    if local.get("cuts") is not None and job.local_learning:  # the setting may be a name
        local["cuts"] = list(prepared.cuts)
    elif isinstance(local.get("cuts"), str):
        local["cuts"] = None
    try:
        devices_here(settings, workers, [])
        if schedule.microbatches > settings.batch_size:
            return False
        keys = {"_target_": class_path(type(schedule)), "microbatches": schedule.microbatches}
        settings = settings.model_copy(update={"local": local, "schedule": keys})
        layout = cut(settings, schedule, prepared.units, {}, Weights([1.0] * len(prepared.units)))
        routes = replace(job.routes, layout=layout)
        job = replace(job, settings=settings, routes=routes)
        auxiliary = prepared.auxiliary_costs if schedule.local else ()
        check_batch_norm(job, prepared.units, prepared.unit_costs, auxiliary)
    except ConfigError:
        return False
    return True
