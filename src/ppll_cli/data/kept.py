"""A cache of data that are made from data sets' files. Damaged files in the cache are replaced."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from io import BufferedWriter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from numpy.lib.format import write_array_header_1_0

from ppll_cli.data.download import one_line
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.files import write_bytes

_VERSION = 2  # version of the format; change it to discard everything that was cached

T = TypeVar("T")
log = logging.getLogger(__name__)


def place(folder: Path, *recipe: object) -> Path:
    """Return the path, in `folder`, of data in the cache.

    `recipe` has everything that determines the data, as JSON values. Equal values give equal paths.
    """
    written = json.dumps([_VERSION, *recipe]).encode()
    return folder / blake2b(written, digest_size=12).hexdigest()


def stamp(path: Path) -> tuple[str, int, int]:
    """Return a file's path, size in bytes and modification time in ns, to detect changes."""
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns


@contextmanager
def pixels_file(path: Path, *shape: int) -> Iterator[BufferedWriter]:
    """Create a .npy file for a uint8 array of this shape, and provide it for writing the pixels."""
    # Do not map the file into memory: on a full disk, writing to a mapped file crashes the process.
    with path.open("wb") as file:
        write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield file
        file.flush()
        os.fsync(file.fileno())


def unwritable(path: Path, error: OSError) -> ConfigError:
    """Return the error for a cache folder that cannot be written to."""
    problem = f"the cache folder cannot be written to ({error.strerror})"
    return ConfigError(
        "data", path, problem, "set XDG_CACHE_HOME to a folder that you can write to"
    )


def kept_folder(
    folder: Path,
    make: Callable[[Path], None],
    read: Callable[[Path], T],
    refused: Callable[[Path, OSError], ConfigError] = unwritable,
) -> T:
    """Read a folder of the cache; make the folder first if it is missing or damaged.

    `make` fills an empty folder. `read` returns the folder's content; any exception of `read` means
    that the folder is damaged. `refused` returns the error to raise if the folder cannot be
    written.
    """
    if (found := _undamaged(folder, read)) is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            make(made)
            _replace(made, folder, Path(scratch, "damaged"), read)
        return read(folder)
    except OSError as error:
        raise refused(folder, error) from error


def kept_file(
    path: Path, make: Callable[[], T], read: Callable[[Path], T], write: Callable[[T], bytes]
) -> T:
    """Read a file of the cache; make its content first if the file is missing or damaged.

    `make` returns the content, and `write` converts it to the bytes of the file. Any exception of
    `read` means that the file is damaged. Then whatever is in its place is replaced, even a folder
    or a link. If the new file cannot be written, only a warning is logged.
    """
    if (found := _undamaged(path, read)) is not None:
        return found
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            with TemporaryDirectory(dir=path.parent, prefix=".damaged-") as scratch:
                os.replace(path, Path(scratch, path.name))
        write_bytes(path, write(made))
    except OSError as error:
        log.warning(
            "%s cannot be written to the cache (%s), so each process makes it again; set "
            "XDG_CACHE_HOME to another folder",
            path,
            error.strerror,
        )
    return made


def _undamaged(path: Path, read: Callable[[Path], T]) -> T | None:
    """Return the content of a file or folder; None if it is missing or damaged."""
    if os.path.lexists(path):
        try:
            return read(path)
        except Exception as error:  # damaged files raise exceptions of any kind
            log.warning("%s in the cache is damaged (%s): it is made again", path, one_line(error))
    return None


def _replace(made: Path, folder: Path, aside: Path, read: Callable[[Path], T]) -> None:
    """Move the new folder `made` to its final path, unless an undamaged folder is there already.

    A damaged folder is first moved to `aside`.
    """
    if os.path.lexists(folder):
        try:
            read(folder)
        except Exception:  # the folder is damaged, and no other run has replaced it yet
            os.replace(folder, aside)
        else:
            return
    try:
        os.replace(made, folder)
    except OSError:
        if not folder.is_dir():  # if it is a folder, another run has put it there
            raise
