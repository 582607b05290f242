"""Removes folders that Hydra made for a run or a sweep that was then refused."""

from collections.abc import Set
from pathlib import Path

from ppll_cli.launch.locks import sweep_runs
from ppll_cli.leaves.files import remove
from ppll_cli.observe.runs import REFUSED_FILE, SWEEP_FILE

SWEPT = {"multirun.yaml", REFUSED_FILE, SWEEP_FILE}
"""Names that the folder of a sweep may contain if all its jobs were refused."""


def existing(folder: Path) -> Path:
    """Return the folder if it exists, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def remove_refused(folder: Path, ours: Set[str], above: Path) -> None:
    """Remove Hydra's files in the folder of a refused run, then folders that became empty.

    These are the run directory and its parents. `above` is the last of them that existed before the
    command; it stays. `ours` has the names of Hydra's files and folders.
    """
    for name in ours:
        remove(folder / name)
    for path in (folder, *folder.parents):
        if above not in path.parents or any(path.iterdir()):
            return
        path.rmdir()


def remove_sweep(folder: Path, above: Path) -> None:
    """Remove the folder of a sweep whose jobs were all refused, then parents that became empty.

    The folder stays if it existed before the command, or if another sweep runs there. `above` is as
    for `remove_refused`.
    """
    if folder == above or not folder.is_dir() or sweep_runs(folder):
        return
    if {path.name for path in folder.iterdir()} <= SWEPT:
        remove_refused(folder, SWEPT, above)
