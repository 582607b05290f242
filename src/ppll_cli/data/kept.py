"""What we derive from a data set's files and keep in the cache folder. Damage is repaired."""

import json
import logging
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from ppll_cli.data.download import one_line
from ppll_cli.data.files import cache_root
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.files import write_bytes

_VERSION = 2  # of what is kept: another number makes everything anew

T = TypeVar("T")
log = logging.getLogger(__name__)


def place(folder: str, recipe: object) -> Path:
    """Where something is kept in the cache folder.

    Args:
        folder: Name of the folder for everything of this kind.
        recipe: All that it depends on; JSON must know it.
    """
    written = json.dumps([_VERSION, recipe]).encode()
    return cache_root() / folder / blake2b(written, digest_size=12).hexdigest()


def stamp(path: Path) -> tuple[str, int, int]:
    """The path, size and time of change of a file, which tell of new content without reading it.

    Raises:
        OSError: There is no such file.
    """
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns


def unwritable(path: Path, error: OSError) -> ConfigError:
    """The error for a cache folder that cannot be written to."""
    problem = f"nothing can be kept in the cache folder ({error.strerror})"
    return ConfigError("data", path, problem, "set XDG_CACHE_HOME to a folder that can be written")


def kept_folder(folder: Path, make: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` finds in a kept folder, which is made where it is missing or damaged.

    Args:
        folder: Its path.
        make: Fills an empty folder.
        read: Returns what a folder holds; any exception means that the folder is damaged.

    Raises:
        OSError: The folder cannot be written.
        ConfigError: From `make`.
    """
    if os.path.lexists(folder):
        try:
            return read(folder)
        except Exception as error:  # damaged files raise exceptions of any kind
            _say_damaged(folder, error)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        make(made)
        _replace(made, folder, Path(scratch, "damaged"), read)
    return read(folder)


def kept_file(path: Path, make: Callable[[], T], write: Callable[[T], bytes]) -> T:
    """Make something and keep it in a file; where that fails, it is made again in each process.

    Args:
        path: Where it is kept. What is there is replaced.
        make: Makes it.
        write: Returns the content of the file.
    """
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            with TemporaryDirectory(dir=path.parent, prefix=".damaged-") as scratch:
                os.replace(path, Path(scratch, path.name))
        write_bytes(path, write(made))
    except OSError as error:
        log.warning(
            "%s cannot be kept (%s): each process makes it anew; XDG_CACHE_HOME names another "
            "folder",
            path,
            error.strerror,
        )
    return made


def read_kept(path: Path, read: Callable[[Path], T]) -> T | None:
    """What a kept file holds; None where it is missing or damaged."""
    if not os.path.lexists(path):
        return None
    try:
        return read(path)
    except Exception as error:  # damaged files raise exceptions of any kind
        _say_damaged(path, error)
        return None


def _replace(made: Path, folder: Path, aside: Path, read: Callable[[Path], T]) -> None:
    """Put what was made in its place, unless another run was quicker."""
    if os.path.lexists(folder):
        try:
            read(folder)
        except Exception:  # still the damaged one
            os.replace(folder, aside)
        else:
            return
    try:
        os.replace(made, folder)
    except OSError:
        if not folder.is_dir():  # else another run was quicker
            raise


def _say_damaged(path: Path, error: Exception) -> None:
    log.warning("%s in the cache is damaged (%s): it is made anew", path, one_line(error))
