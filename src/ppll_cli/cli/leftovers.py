"""Removes folders that Hydra made for a run or a sweep that was then refused."""

from pathlib import Path

from ppll_cli.config.targets import start_folder
from ppll_cli.launch.locks import sweep_runs
from ppll_cli.leaves.files import remove
from ppll_cli.observe.runs import REFUSED_FILE, SWEEP_FILE


def remove_refused(run_dir: Path, ours: set[str], made: set[Path] | None) -> None:
    """Remove the files that Hydra made for a refused run, then the folders that became empty.

    `ours` has the names of Hydra's files and folders inside the run directory. `made` tells which
    of the run directory and its parents did not exist before the run; None if this is unknown.
    """
    for name in ours:
        remove(run_dir / name)
    _remove_empty(run_dir, made)


def remove_sweep(folder: Path, made: set[Path]) -> None:
    """Remove the folder of a sweep whose jobs were all refused, then parents that became empty.

    The folder stays if it was not made for the sweep, or if another sweep runs there.
    """
    if folder not in made or not folder.is_dir() or sweep_runs(folder):
        return
    left = {path.name for path in folder.iterdir()}
    if left <= {"multirun.yaml", REFUSED_FILE, SWEEP_FILE}:
        for name in left:
            (folder / name).unlink()
        _remove_empty(folder, made)


def _remove_empty(folder: Path, made: set[Path] | None) -> None:
    """Remove a folder, then its parent, and so on upwards.

    Stop at a folder that is not empty, or was not made for the run. If `made` is None, `folder` and
    its parents inside `outputs` count as made for the run.
    """
    outputs = start_folder() / "outputs"
    for path in (folder, *folder.parents):
        ours = path == folder or path.is_relative_to(outputs) if made is None else path in made
        if not ours or any(path.iterdir()):
            return
        path.rmdir()
