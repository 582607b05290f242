"""A sweep: which sweeper ran it, which jobs were refused, and the comparison that it ends with."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ppll_cli.cli.compare import show, write
from ppll_cli.config.commands import command, short_path
from ppll_cli.errors import ConfigError
from ppll_cli.launch.sweeps import BASIC, SWEEP_FORMAT, read_sweep
from ppll_cli.leaves.files import make_folder, write_json
from ppll_cli.observe.comparison import compare
from ppll_cli.observe.logs import for_show
from ppll_cli.observe.runs import REFUSED_FILE, SWEEP_FILE
from ppll_cli.observe.tracker import guarded, sweep_name


def refuse(folder: Path, job: int, overrides: Sequence[str], error: str) -> None:
    """Note that a job was refused, which leaves no run directory.

    Args:
        folder: Of the sweep.
        job: The job's number.
        overrides: What the job was to be.
        error: Why it was refused.
    """
    line = json.dumps({"job": job, "overrides": list(overrides), "error": error}) + "\n"
    # Jobs may run at once, in processes of their own: a line is written in one piece.
    file = os.open(folder / REFUSED_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


class CompareRuns(Callback):
    """Ends a sweep with the comparison of its runs, in its folder.

    Attributes:
        failed: How many jobs of the last sweep did not complete, wherever they ran.
        interrupted: Whether one of them was stopped.
        made: Its folder, if that was not there before.
    """

    failed: ClassVar[int] = 0
    interrupted: ClassVar[bool] = False
    made: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note which search this is, for `resume` to say why it cannot go on."""
        folder = Path(config.hydra.sweep.dir).absolute()
        type(self).made = None if folder.exists() else folder
        name = str(config.hydra.runtime.choices["hydra/sweeper"])
        file = folder / SWEEP_FILE
        if name == BASIC or os.path.lexists(file):  # the basic sweeper notes its jobs
            return
        with for_show(f"{file} could not be written"):
            make_folder(folder)
            write_json(file, {"format": SWEEP_FORMAT, "sweeper": name})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """All jobs have ended."""
        folder = Path(config.hydra.sweep.dir)
        if self._compare(folder):
            with for_show("the tracker was not told of the sweep"):
                tracker: Any = OmegaConf.to_container(config.tracker, resolve=True)
                name = str(config.hydra.runtime.choices.tracker)
                guarded(name, tracker).sweep(folder, sweep_name(folder))

    def _compare(self, folder: Path) -> bool:
        """Show the comparison and write it, where there is something to compare."""
        comparison = compare([folder])
        ends = _ends(folder)
        type(self).failed = len(comparison.failed) if ends is None else len(ends)
        type(self).interrupted = "interrupted" in (ends or ())
        if all(row.run.status == "refused" for row in comparison.rows):
            return False
        written: list[str] = []
        with for_show("the comparison could not be written"):
            written = write(comparison, folder)
        with for_show("the comparison could not be shown"):
            # With another run or sweep behind it, it is compared to that one.
            then = command("ppll-compare", short_path(folder.absolute()))
            show(comparison, folder, written, then)
        return True


def _ends(folder: Path) -> list[str] | None:
    """What those jobs came to that have not completed; None where the jobs are not known."""
    try:
        jobs = read_sweep(folder).jobs
    except ConfigError:
        return None
    return [status for job in jobs if (status := job.status) != "completed"]
