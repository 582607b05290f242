"""Checks the configuration of each job of a command, and runs the job."""

import gc
import logging
import os
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from ppll_cli.cli.overrides import occupied
from ppll_cli.config.commands import command, short_path
from ppll_cli.config.composition import check_choices, options_given, own_choices
from ppll_cli.errors import ConfigError, Interrupted, PpllError
from ppll_cli.launch.locks import sweep_runs
from ppll_cli.leaves.files import remove, replacing
from ppll_cli.observe import streams
from ppll_cli.observe.runs import CONFIG_FILE, LOG_FILE, REFUSED_FILE, SWEEP_FILE

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ppll_cli.launch.machines.fleet import Fleet
    from ppll_cli.launch.resume import Recorded
    from ppll_cli.launch.run import Run
    from ppll_cli.launch.sweeps import RecordedSweep

log = logging.getLogger(__name__)

BEGAN_S = time.monotonic()
"""When this process began, on the clock of `time.monotonic`."""

HYDRAS = (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml")
"""Files that Hydra writes into a run directory, besides the log."""

SWEPT = {"multirun.yaml", REFUSED_FILE, SWEEP_FILE}
"""Names that the folder of a sweep may contain if all its jobs were refused."""

_stopped: list[Interrupted] = []
"""Interrupts of jobs in a process that Hydra's launcher started. After the first interrupt, the
process skips its other jobs."""


@dataclass
class Jobs:
    """Runs the jobs of a command: the only job of a single run, or all jobs of a sweep.

    Attributes:
        current: The `Jobs` object of this process.
        arguments: The arguments of the command line.
        overrides: The overrides of the command line, without `resume=auto`.
        fleet: The machines, if torchrun or srun started this program on several; else None.
        before: The record of the run to be resumed; None for a new run and for a sweep.
        swept: The record of the sweep to be resumed; None for a new sweep and for a single run.
        folder: The folder of the run or of the sweep.
        above: The nearest folder that existed before the command: `folder` or one above it.
        earlier: The files in `folder` that Hydra replaces, with their content before the command.
        process: ID of the process that runs the command; jobs may run in other processes.
        resume_command: The command that resumes the sweep; None until the sweep can be resumed.
        began: Whether Hydra has begun a job.
        failures: The errors of jobs. If a job was interrupted, its error is the first.
        ends: After a sweep, the status of each job that did not complete.
    """

    # Hydra creates the sweeper and the callback, and cannot pass them a `Jobs`. They read this one.
    current: ClassVar["Jobs"]

    arguments: Sequence[str] = ()
    overrides: Sequence[str] = ()
    fleet: "Fleet | None" = None
    before: "Recorded | None" = None
    swept: "RecordedSweep | None" = None
    folder: Path = Path()
    above: Path = Path()
    earlier: Mapping[Path, bytes] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)
    resume_command: str | None = None
    began: bool = False
    failures: list[PpllError] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def begin_in(self, folder: Path) -> None:
        """Record the path of the results' folder, and copy the files in it that Hydra will replace.

        Call this before Hydra writes. If the run is refused, `remove_refused` restores the files.
        """
        self.folder = Path(os.path.abspath(folder))  # without `..`, like Hydra's `output_dir`
        places = (self.folder, *self.folder.parents)
        self.above = next(path for path in places if os.path.exists(path))
        if self.before is not None:  # Hydra replaces no file of a run that is resumed
            return
        files = [self.folder / name for name in (*HYDRAS, LOG_FILE)]
        self.earlier = {file: file.read_bytes() for file in files if os.path.isfile(file)}

    def remove_begun(self) -> None:
        """Remove what Hydra wrote before it failed to begin a job, for example on a full disk."""
        # Without a folder, Hydra has written nothing. A run that is resumed keeps its files.
        if self.folder == Path() or self.before is not None:
            return
        with suppress(OSError):  # the user sees Hydra's error instead
            remove_refused(self.folder, {*HYDRAS, LOG_FILE}, self.above, self.earlier)

    def run(self, cfg: "DictConfig") -> float | None:
        """Run a job, and return the value of its objective for a sweeper.

        If the job fails, add the error to `failures`, and return None. Also return None if the
        objective was not measured.

        Raises:
            KeyboardInterrupt: The job was interrupted, and this process runs the command. In other
                processes, which Hydra's launcher starts, an interrupted job returns None.
        """
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from ppll_cli.cli.explain import explain
        from ppll_cli.cli.sweep import note_refusal

        self.began = True
        streams.guard()  # Hydra's launcher may run the job in another process
        streams.tell_failures()
        if _stopped:
            return None
        # Hydra must not see the errors: it would print its own message, and drop a sweep's results.
        try:
            return self._run(cfg)
        except (ConfigError, OmegaConfBaseException, HydraException) as error:
            refusal = explain(error, self.arguments)
            note_refusal(refusal)
            self.failures.append(refusal)
        except Interrupted as error:
            if os.getpid() != self.process:
                # An exception raised here would not reach the process that runs the sweep.
                _stopped.append(error)
                return None
            self.failures.insert(0, error)
            raise KeyboardInterrupt from None  # so that Hydra does not start a sweep's next job
        except PpllError as error:
            self.failures.append(error)
        return None

    def _run(self, cfg: "DictConfig") -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf.errors import OmegaConfBaseException

        from ppll_cli.cli.sweep import direction_of, warn_of_tuning
        from ppll_cli.config.objective import value

        hydra_config = HydraConfig.get()
        run_dir = Path(hydra_config.runtime.output_dir)
        log_file = run_dir / f"{hydra_config.job.name}.log"
        ours = {*HYDRAS, log_file.name}
        known = {Path(name).parts[0] for name in ours}
        replaced = self.earlier.keys() & {run_dir / name for name in HYDRAS}
        if replaced and log_file not in self.earlier:
            known.remove(".hydra")  # another program made it
        strangers = sorted({path.name for path in run_dir.iterdir()} - known)
        goes_on = self.before or (self.swept is not None and CONFIG_FILE in strangers)
        if strangers and not goes_on:
            if run_dir == self.folder:  # `earlier` has no files of a sweep's run directories
                remove_refused(run_dir, ours, self.above, self.earlier)
            problem = f"is not empty: it holds {strangers[0]}"
            raise occupied(str(run_dir), problem)
        try:
            run = self._checked(cfg, run_dir, own_choices(hydra_config.runtime.choices))
            run.direction = direction_of(hydra_config)
            summary = run.execute()
        except Interrupted:
            if hydra_config.mode is RunMode.MULTIRUN:
                compare = command("ppll-compare", short_path(self.folder))
                log.info("  to compare the runs so far: %s", compare)
                if self.resume_command is not None:
                    log.info(how_to_resume(self.resume_command))
            raise
        except (ConfigError, OmegaConfBaseException):
            if not (run_dir / CONFIG_FILE).exists():  # no run has begun in this folder
                remove_refused(run_dir, ours, self.above, self.earlier)
            raise
        warn_of_tuning(hydra_config, run.objective)
        return value(run.objective, summary)

    def _checked(self, cfg: "DictConfig", run_dir: Path, choices: dict[str, str]) -> "Run":
        from ppll_cli.config import settings
        from ppll_cli.config.changes import changes
        from ppll_cli.config.interpolated import plain
        from ppll_cli.config.targets import make
        from ppll_cli.config.weights import weights_file

        config, before = plain(cfg), self.before
        if before is not None:
            config, choices = before.changed(config, choices, self.overrides)
        elif self.swept is not None:
            known = run_dir, config, choices, self.overrides
            before, config, choices = self.swept.changed(*known)
        parsed = settings.parse(config)
        check_choices(choices)
        for group in ("schedule", "data", "tracker"):  # these classes check arguments without torch
            make(group, config[group])
        if before is None and parsed.weights is not None:
            weights_file(parsed.weights)

        from ppll_cli.launch.run import Run  # slow: imports torch

        if not gc.isenabled():  # the first job of this process
            gc.freeze()  # garbage collection need not visit imported modules: they live to the end
            gc.enable()
        changed = partial(changes, config, choices)
        given = before, changed, self.fleet, options_given(self.arguments), BEGAN_S
        return Run(parsed, config, choices, run_dir, *given)


Jobs.current = Jobs()  # no command runs yet


def how_to_resume(command: str) -> str:
    """Return the line that tells the user to continue a sweep with `command`."""
    return f"  to continue the sweep: {command}"


def remove_refused(
    folder: Path, ours: Set[str], above: Path, earlier: Mapping[Path, bytes] = MappingProxyType({})
) -> None:
    """Remove Hydra's files in the folder of a refused run, and then folders that became empty.

    Folders above the run directory are removed too, up to `above`.

    Args:
        folder: The run directory.
        ours: The names of Hydra's files in `folder`.
        above: The nearest folder that existed before the command; it stays. It is `folder` itself
            or a folder above it.
        earlier: Files that existed before the command, with their content at that time. They are
            restored, not removed.

    Raises:
        OSError: A file cannot be removed or restored.
    """
    # Files that were not there before are removed first: on a full disk, this makes room.
    for path in sorted((folder / name for name in ours), key=lambda path: path in earlier):
        if path not in earlier:
            remove(path)
        elif not path.is_file() or path.read_bytes() != earlier[path]:
            with replacing(path) as new:
                new.write_bytes(earlier[path])
    for path in (folder / ".hydra", folder, *folder.parents):
        if above in path.parents:
            with suppress(OSError):  # it is not empty, or missing
                path.rmdir()


def remove_sweep(folder: Path, above: Path) -> None:
    """Remove a sweep's folder if all jobs were refused, and then parents that became empty.

    The folder stays if another sweep runs there.

    Args:
        folder: The folder of the sweep.
        above: The nearest folder that existed before the command. If this is `folder`, it stays.
    """
    if folder == above or not os.path.isdir(folder) or sweep_runs(folder):
        return
    if {path.name for path in folder.iterdir()} <= SWEPT:
        remove_refused(folder, SWEPT, above)
