"""A sweep: which of its jobs were refused, and the comparison that it ends with."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.experimental.callback import Callback

from ppll_cli.compare import show
from ppll_cli.observe.comparison import compare
from ppll_cli.observe.runs import REFUSED_FILE

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


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
        failed: How many jobs of the last sweep failed or were refused, wherever they ran.
    """

    failed: ClassVar[int] = 0

    def on_multirun_end(self, config: "DictConfig", **_: Any) -> None:
        """All jobs have ended."""
        folder = Path(config.hydra.sweep.dir)
        comparison = compare([folder])
        type(self).failed = len(comparison.failed)
        if all(row.run.status == "refused" for row in comparison.rows):
            return
        try:
            comparison.write(folder)
        except OSError as error:
            log.warning("the comparison could not be written: %s", error)
        show(comparison, folder)
