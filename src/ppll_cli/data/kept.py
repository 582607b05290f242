"""Caches what is computed from the files of a data set, for example resized images.

Damaged files in the cache are replaced.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from io import BufferedWriter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NoReturn, TypeVar

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from ppll_cli.data.download import one_line
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.files import write_bytes

_VERSION = 2  # version of the format; change it to discard everything that was cached

T = TypeVar("T")
log = logging.getLogger(__name__)


def place(folder: Path, *inputs: object) -> Path:
    """Return the path in `folder` at which data are cached.

    `inputs` is everything that determines the data, as values that JSON can represent. The path's
    name is a digest of `inputs`, so that data from other inputs get another path.
    """
    written = json.dumps([_VERSION, *inputs]).encode()
    return folder / blake2b(written, digest_size=12).hexdigest()


def stamp(path: Path) -> tuple[str, int, int]:
    """Return a file's path, size in bytes and modification time in ns, to detect changes.

    Raises:
        OSError: There is no such file, or it cannot be examined.
    """
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns


@contextmanager
def pixels_file(path: Path, *shape: int) -> Iterator[BufferedWriter]:
    """Create a .npy file for a uint8 array of this shape; the caller writes the pixels into it."""
    # Do not map the file into memory: on a full disk, writing to a mapped file crashes the process.
    with path.open("wb") as file:
        write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield file
        file.flush()
        os.fsync(file.fileno())


def mapped_pixels(path: Path, *shape: int, mode: Literal["r", "c"] = "r") -> NDArray[np.uint8]:
    """Map a .npy file with a uint8 array of this shape into memory.

    With mode `r` the array can only be read. With mode `c` it can be changed, but not the file.

    Raises:
        ValueError: The file has an array of another dtype or shape, or is damaged.
        OSError: The file cannot be read.
        EOFError: The file is empty.
    """
    pixels: NDArray[np.uint8] = np.load(path, mmap_mode=mode)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise ValueError(f"{path.name} holds {pixels.dtype} {pixels.shape}, not uint8 {shape}")
    return pixels


def kept_folder(
    folder: Path,
    make: Callable[[Path], None],
    read: Callable[[Path], T],
    key: str = "data",
    remedy: str = "set XDG_CACHE_HOME to a folder that you can write to",
) -> T:
    """Read a folder of the cache; make the folder first if it is missing or damaged.

    Args:
        folder: The folder to read.
        make: Fills an empty folder.
        read: Returns the content of a folder. If it raises any exception, the folder counts as
            damaged.
        key: Option that the error names.
        remedy: Advice at the end of the error.

    Raises:
        ConfigError: The folder cannot be written.
    """

    def write(made: Path) -> None:
        made.mkdir()
        make(made)

    def failed(error: OSError) -> NoReturn:
        problem = f"the cache folder cannot be written to ({error.strerror})"
        raise ConfigError(key, folder.parent, problem, remedy) from error

    return _kept(folder, write, read, failed)


def kept_file(
    path: Path, make: Callable[[], T], read: Callable[[Path], T], write: Callable[[T], bytes]
) -> T:
    """Read a file of the cache; make its content first if the file is missing or damaged.

    If the new file cannot be written, a warning is logged, and the content is returned anyway.

    Args:
        path: The file to read.
        make: Returns the content.
        read: Returns the content of the file. If it raises any exception, the file counts as
            damaged.
        write: Converts the content to the bytes of the file.
    """
    made = cache(make)

    def failed(error: OSError) -> T:
        log.warning(
            "%s cannot be written to the cache (%s), so each process makes it again; set "
            "XDG_CACHE_HOME to another folder",
            path,
            error.strerror,
        )
        return made()

    return _kept(path, lambda new: write_bytes(new, write(made())), read, failed)


def _kept(
    path: Path,
    write: Callable[[Path], None],
    read: Callable[[Path], T],
    failed: Callable[[OSError], T],
) -> T:
    damaged = os.path.lexists(path)  # also true for a broken link
    if damaged:
        try:
            return read(path)
        except Exception as error:  # damaged files raise exceptions of any kind
            log.warning("%s in the cache is damaged (%s): it is made again", path, one_line(error))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".making-") as scratch:
            write(made := Path(scratch, "made"))
            if damaged:
                # It may be good now: another run has replaced it, or only the first reading failed.
                with suppress(Exception):
                    return read(path)
                with suppress(FileNotFoundError):  # another run has moved it
                    os.replace(path, Path(scratch, "damaged"))
            try:
                os.replace(made, path)
            except OSError:
                if not path.is_dir():  # if it is a folder, another run has put it there
                    raise
        return read(path)
    except OSError as error:
        return failed(error)
