"""Writes the files of a sweep: which sweeper ran it, the refused jobs, and the comparison."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ppll_cli.cli.compare import show, write
from ppll_cli.cli.job import Jobs
from ppll_cli.config.commands import command, short_path
from ppll_cli.config.composition import overrides_of
from ppll_cli.errors import ConfigError
from ppll_cli.launch.sweeps import BASIC, SWEEP_FORMAT, read_sweep
from ppll_cli.leaves.files import make_folder, write_json
from ppll_cli.observe.comparison import compare
from ppll_cli.observe.logs import only_warn
from ppll_cli.observe.runs import REFUSED_FILE, SWEEP_FILE
from ppll_cli.observe.tracker import guarded, sweep_name

log = logging.getLogger(__name__)


def note_refusal(error: ConfigError) -> None:
    """If this process runs a job of a sweep, record why the job was refused."""
    config = HydraConfig.get()
    if config.mode is RunMode.MULTIRUN:
        refuse(Path(config.sweep.dir), config.job.num, overrides_of(config, "task"), str(error))


def refuse(folder: Path, job: int, overrides: Sequence[str], error: str) -> None:
    """Record a refused job in the sweep's folder, because the job has no run directory."""
    line = json.dumps({"job": job, "overrides": list(overrides), "error": error}) + "\n"
    # Several processes may append at the same time, so one call writes the line, without a buffer.
    with (folder / REFUSED_FILE).open("ab", buffering=0) as file:
        file.write(line.encode())


def _is_search(config: Any) -> bool:
    is_sweep = config.mode is RunMode.MULTIRUN
    return is_sweep and "basic" not in config.runtime.choices["hydra/sweeper"]


def direction_of(config: Any) -> str | None:
    """Return the direction of a search, "minimize" or "maximize".

    The result is None if there is no search, or if the sweeper names no direction.
    """
    value = OmegaConf.select(config, "sweeper.direction") if _is_search(config) else None
    name = getattr(value, "name", value)  # an enum, if the plugin's schema defines it as one
    return name if name in ("minimize", "maximize") else None


def warn_of_tuning(config: Any, objective: str) -> None:
    """Log a warning if a sweeper chooses settings by results on the test set."""
    if _is_search(config) and objective.startswith(("test.", "test_ema.")):
        log.warning(
            "objective=%s: the sweeper tunes on the test set, so test results will be too "
            "optimistic; data.val_fraction=0.1 holds out a part of the training set to tune on",
            objective,
        )


class CompareRuns(Callback):
    """After a sweep, compares its runs, and writes the comparison into the sweep's folder."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Remember the files that Hydra will replace, to restore them if the run is refused."""
        Jobs.current.begin_in(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remember the folder of the sweep, and record the sweeper's name, unless it is "basic".

        By the name, `resume` refuses the sweeps of all other sweepers.
        """
        Jobs.current.begin_in(Path(config.hydra.sweep.dir))
        folder = Jobs.current.folder
        name = str(config.hydra.runtime.choices["hydra/sweeper"])
        file = folder / SWEEP_FILE
        if name == BASIC or os.path.lexists(file):  # the basic sweeper writes its own record
            return
        with only_warn(f"{file} could not be written"):
            make_folder(folder)
            write_json(file, {"format": SWEEP_FORMAT, "sweeper": name})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Compare the runs, and report the sweep to the tracker, unless all jobs were refused."""
        folder = Path(config.hydra.sweep.dir)
        if self._compare(folder):
            with only_warn("the sweep could not be reported to the tracker"):
                tracker: Any = OmegaConf.to_container(config.tracker, resolve=True)
                name = str(config.hydra.runtime.choices.tracker)
                guarded(name, tracker).sweep(folder, sweep_name(folder))

    def _compare(self, folder: Path) -> bool:
        comparison = compare([folder])
        refused = {row.run.name for row in comparison.rows if row.run.status == "refused"}
        try:
            ends = [
                "refused" if str(job.number) in refused else job.status
                for job in read_sweep(folder).jobs
            ]
        except ConfigError:  # the jobs of a search are not recorded
            ends = [row.run.status for row in comparison.failed]
        Jobs.current.ends = [status for status in ends if status != "completed"]
        if len(refused) == len(comparison.rows):
            return False
        written: list[str] = []
        with only_warn("the comparison could not be written"):
            written = write(comparison, folder)
        with only_warn("the comparison could not be shown"):
            # The user can add other runs and sweeps to this command.
            then = command("ppll-compare", short_path(folder.absolute()))
            show(comparison, folder, written, then)
        return True
