"""One job: check its composed configuration, and run it."""

import gc
import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ppll_cli.cli.leftovers import remove_refused
from ppll_cli.config.commands import command, short_path
from ppll_cli.config.composition import check_choices, options_given, own_choices
from ppll_cli.errors import ConfigError, Interrupted
from ppll_cli.observe.runs import CONFIG_FILE

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ppll_cli.cli.sweeper import Sweep
    from ppll_cli.launch.machines.fleet import Fleet
    from ppll_cli.launch.resume import Recorded
    from ppll_cli.launch.run import Run

log = logging.getLogger(__name__)

BEGAN_S = time.monotonic()
"""When this process began, on the clock of `time.monotonic`.

If Hydra's launcher runs jobs of a sweep in other processes, each process has its own value.
"""


def run_job(
    cfg: "DictConfig",
    before: "Recorded | None",
    sweep: "Sweep",
    made: set[Path] | None,
    fleet: "Fleet | None",
) -> float | None:
    """Run one job with its composed configuration, and return its objective for a sweeper."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from ppll_cli.cli.sweep import warn_of_tuning
    from ppll_cli.config.objective import value

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    choices = own_choices(hydra_config.runtime.choices)
    ours = {".hydra", f"{hydra_config.job.name}.log"}
    strangers = sorted({path.name for path in run_dir.iterdir()} - ours)
    goes_on = before is not None or (sweep.before is not None and CONFIG_FILE in strangers)
    if strangers and not goes_on:
        problem = f"is not empty: it holds {strangers[0]}"
        raise ConfigError("hydra.run.dir", run_dir, problem, "choose a new folder")
    try:
        run = _checked(cfg, before, sweep, run_dir, choices, fleet)
        summary = run.execute()
    except Interrupted:
        if hydra_config.mode is RunMode.MULTIRUN:
            folder = short_path(Path(hydra_config.runtime.cwd, hydra_config.sweep.dir))
            log.info("  to compare its runs so far: %s", command("ppll-compare", folder))
            if sweep.go_on is not None:
                log.info(to_go_on(sweep.go_on))
        raise
    except (ConfigError, OmegaConfBaseException):
        if not (run_dir / CONFIG_FILE).exists():  # no run has begun in this folder
            remove_refused(run_dir, ours, made)
        raise
    warn_of_tuning(hydra_config, run.objective)
    return value(run.objective, summary)


def _checked(
    cfg: "DictConfig",
    before: "Recorded | None",
    sweep: "Sweep",
    run_dir: Path,
    choices: dict[str, str],
    fleet: "Fleet | None",
) -> "Run":
    """Return the run of a job, after checking its settings without torch as far as possible."""
    from ppll_cli.config import settings
    from ppll_cli.config.changes import changes
    from ppll_cli.config.interpolated import plain
    from ppll_cli.config.targets import make
    from ppll_cli.config.weights import weights_file

    config = plain(cfg)
    if before is not None:
        config, choices = before.changed(config, choices, sweep.overrides)
    elif sweep.before is not None:
        known = run_dir, config, choices, sweep.overrides
        before, config, choices = sweep.before.changed(*known)
    parsed = settings.parse(config)
    check_choices(choices)
    for group in ("schedule", "data", "tracker"):  # these classes check arguments without torch
        make(group, config[group])
    if before is None and parsed.weights is not None:
        weights_file(parsed.weights)

    from ppll_cli.launch.run import Run

    if not gc.isenabled():  # the first job of this process
        gc.freeze()  # modules stay to the end: the garbage collector need not visit them
        gc.enable()
    changed = partial(changes, config, choices)
    options = options_given()
    return Run(parsed, config, choices, run_dir, before, changed, fleet, options, BEGAN_S)


def to_go_on(sweep: str) -> str:
    """Return the line that says how to continue a sweep."""
    return f"  to continue the sweep: {sweep}"
