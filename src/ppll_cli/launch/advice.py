"""What a run offers its user to do next, as commands to copy."""

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
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.pipeline.schedules.bp import BackPropagation
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.ll import LocalLearning
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.prepare.checks import check_batch_norm
from ppll_cli.prepare.cutting import Weights, cut
from ppll_cli.prepare.preparation import Prepared

MICROBATCHES = 4
"""Of gpipe, as its option has it."""

COMPARED: Mapping[str, Schedule] = {
    "bp": BackPropagation(),
    "ll": LocalLearning(),
    "gpipe": GPipe(microbatches=MICROBATCHES),
    "ppll": PPLL(),
}
"""The schedules that a run is worth comparing to."""

OWN = ("schedule", "gpus", "objective", "max_minutes")
"""What the comparison sets itself, what only a sweeper needs, and what limits this run alone."""

LONGEST = 1000
"""Characters of a command that is shown without having been asked for."""


def go_on(
    run_dir: Path,
    options: Sequence[str],
    changes: Sequence[str] | None,
    config: Mapping[str, Any],
    choices: Mapping[str, str],
) -> str:
    """The command that goes on with a run.

    Classes that no option of a group names are given again: `resume` takes none from a folder.

    Args:
        run_dir: The run directory.
        options: Of the command line, those that say where configurations are.
        changes: The overrides that make the configuration from the defaults, where they are known.
        config: The run's configuration.
        choices: The option chosen in each group.
    """
    classes = [change for change in changes or () if key_of(change).endswith("._target_")]
    if changes is None or any(choices.get(preset, "None") != "None" for preset in PRESETS):
        # A preset is not composed again: what it names is given, as what is not known.
        known = {key_of(change) for change in classes}
        found = [(key, path) for key, path in targets_in(config) if key not in known]
        classes += [setting(key, path) for key, path in found if not path.startswith("ppll_cli.")]
    tracker = choices.get("tracker", "none")  # a resumed run is tracked where that is said again
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
    """The sweep that sets a run beside other schedules; None where there is none that would run.

    Args:
        settings: Of the run.
        prepared: The run.
        options: Of the command line, those that say where configurations are.
        changes: The overrides that make the configuration from the defaults.
        resumed: Whether the run went on with one that was there.
    """
    gpus = max(2, settings.devices_asked)
    job = prepared.job
    there = settings.model_copy(update={"gpus": gpus})
    beside = settings.device == "auto" and {*job.devices} == {"cpu"} and torch.cuda.device_count()
    if beside:  # a schedule that needs one device alone would take it
        there = there.model_copy(update={"device": "cpu"})
    accepted = [name for name, one in COMPARED.items() if _accepts(there, prepared, one)]
    if len(accepted) < 2:
        return None
    given = [f"schedule={','.join(accepted)}", f"gpus={gpus}"]
    given += [change for change in changes if key_of(change).split(".")[0] not in OWN]
    if beside:
        given.append("device=cpu")
    fixed = settings.local.get("cuts") is not None or settings.local.get("modules") is not None
    if resumed and job.local_learning and not fixed:  # its stages may have been others at first
        given.append(setting("local.cuts", list(prepared.cuts)))
    found = command("ppll-run", "--multirun", *options, *given)
    return found if len(found) <= LONGEST else None


def _accepts(settings: Settings, prepared: Prepared, schedule: Schedule) -> bool:
    """Whether the run would start with another schedule, and these devices."""
    workers = settings.replicas if schedule.one_stage else settings.devices_asked
    job = prepared.job
    local = dict(settings.local)
    if local.get("cuts") is not None and job.local_learning:  # they may be given by a name
        local["cuts"] = list(prepared.cuts)
    elif isinstance(local.get("cuts"), str):
        local["cuts"] = None
    try:
        devices_here(settings, workers, [])
        if schedule.microbatches > settings.batch_size:
            return False
        settings = settings.model_copy(update={"local": local})
        layout = cut(settings, schedule, prepared.units, {}, Weights([1.0] * len(prepared.units)))
        target = f"{type(schedule).__module__}.{type(schedule).__qualname__}"
        keys = {"_target_": target, "microbatches": schedule.microbatches}
        routes = replace(job.routes, layout=layout)
        job = replace(job, schedule=keys, routes=routes)
        auxiliary = prepared.auxiliary_costs if schedule.local else ()
        check_batch_norm(job, prepared.units, prepared.unit_costs, auxiliary)
    except ConfigError:
        return False
    return True
