"""Locks a run or a sweep, so that only one process at a time works on it.

The end of the process also releases the lock, even if the process is killed. If the file system has
no locks, nothing is locked, and a warning is logged.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppll_cli.errors import ConfigError
from ppll_cli.observe.runs import CONFIG_FILE, SWEEP_FILE

log = logging.getLogger(__name__)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run directory while the `with` block runs.

    Raises:
        ConfigError: Another process holds the lock.
        OSError: The run's `config.json` cannot be opened.
    """
    with (run_dir / CONFIG_FILE).open() as file:
        _lock(file.fileno(), "resume", run_dir, "another process is continuing this run")
        yield


@contextmanager
def locked_sweep(folder: Path, *, begins: bool) -> Iterator[int]:
    """Hold the lock of a sweep, and yield the descriptor of its open `sweep.json`.

    If `begins` is true, a missing `sweep.json` is created.

    Raises:
        ConfigError: Another process holds the lock.
        OSError: The file cannot be opened, or is a link.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if begins else 0)
    file = os.open(folder / SWEEP_FILE, flags, 0o666)
    try:
        key = "hydra.sweep.dir" if begins else "resume"
        _lock(file, key, folder, "another process is running this sweep")
        yield file
    finally:
        os.close(file)


def sweep_runs(folder: Path) -> bool:
    """Return whether another process runs a sweep in a folder."""
    try:
        with locked_sweep(folder, begins=False):
            return False
    except ConfigError:
        return True
    except OSError:  # there is no sweep
        return False


def _lock(file: int, key: str, folder: Path, problem: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(key, folder, problem, "wait until it ends, or stop it") from None
    except OSError as error:  # the file system has no locks
        told = "%s cannot be locked (%s): make sure that only one process runs there"
        log.warning(told, folder, error)
