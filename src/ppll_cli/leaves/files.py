"""Reads files that may be damaged, and writes files completely or not at all. Imports no torch."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 1 << 26
"""Largest accepted size in bytes of a JSON file."""

DEEPEST_JSON = 64
"""Deepest accepted nesting of lists and objects in a JSON file."""

TOO_DEEP = "its brackets are nested too deeply"

MOST_LINES_BYTES = 1 << 30
"""Largest accepted size in bytes of a file of JSON lines."""


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file; after a crash it has the old or the new text, never a part.

    If a file name in the text has bytes that are not UTF-8, these bytes are written as escapes.

    Raises:
        OSError: The file cannot be written; its old content is still there.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write or replace a file; after a crash it has the old or the new content, never a part.

    Raises:
        OSError: The file cannot be written; its old content is still there.
    """
    with replacing(path) as unfinished, unfinished.open("xb") as file:  # "x" follows no link
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide the path of a new file, which replaces the file `path` after the `with` block.

    The new file is in the same folder, and the block must create it. If the block raises an
    exception, the new file is removed, and the old file stays.

    Raises:
        OSError: The new file is missing, or cannot replace the old file.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.unlink(missing_ok=True)  # left by a killed process that had the same process ID
        yield unfinished
        with unfinished.open("rb") as file:  # its content must be on the disk before the rename
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        with suppress(OSError):  # the first error says more
            unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def open_regular(path: Path, most_bytes: int | None = None) -> Iterator[BufferedReader]:
    """Open a regular file, or a link to it, for reading.

    A FIFO or a device is not opened, because that could wait for ever or have side effects.

    Raises:
        OSError: The file is missing, not regular, larger than `most_bytes`, or cannot be read.
    """
    _check_regular(path, os.stat(path), most_bytes)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        # Another process may have replaced the file after the first check.
        _check_regular(path, os.fstat(descriptor), most_bytes)
        yield file


def _check_regular(path: Path, status: os.stat_result, most_bytes: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    if most_bytes is not None and status.st_size > most_bytes:
        problem = f"has {status.st_size} bytes, more than {most_bytes}"
        raise OSError(errno.EFBIG, problem, str(path))


def read_json(path: Path) -> Any:
    """Return the JSON value in a file.

    Raises:
        OSError: The file is missing, is no regular file, is too large, or cannot be read.
        ValueError: The content is not JSON, or is nested too deeply.
    """
    with open_regular(path, MOST_JSON_BYTES) as file:
        value = parse_json(file.read())
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    inner = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST_JSON):
        lists = [each.values() if isinstance(each, dict) else each for each in inner]
        inner = [v for each in lists for v in each if isinstance(v, dict | list)]
        if not inner:
            return
    raise ValueError(TOO_DEEP)


def parse_json(content: bytes | str) -> Any:
    """Return the JSON value in a text; raise ValueError for other text, or for too deep nesting."""
    try:
        return json.loads(content if isinstance(content, str) else content.decode())
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def problem_of(error: Exception) -> str:
    """Return why a file could not be read, in a few words that can follow the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split()) or type(error).__name__


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents. The folder may exist already.

    Raises:
        OSError: The folder cannot be created, or the path is a link or a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "a link is where a folder should be", str(folder))


def apply_umask(path: Path) -> None:
    """Give a file the permissions that the umask gives to new files.

    This is for a file that a library has created with other permissions. If the permissions cannot
    be changed, they stay as they are.
    """
    probe = path.with_name(f".{path.name}.mode")
    with suppress(OSError):  # some file systems have no modes
        try:
            probe.touch(exist_ok=False)
            path.chmod(probe.stat().st_mode & 0o777)
        finally:
            probe.unlink(missing_ok=True)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a file of JSON lines; skip other lines. A missing file is empty.

    Raises:
        OSError: The path is no regular file, is too large, or cannot be read.
    """
    try:
        with open_regular(path, MOST_LINES_BYTES) as file:
            for line in file:
                try:
                    found = parse_json(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    yield found
    except FileNotFoundError:
        return


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal; it does not depend on the order of keys.

    Raises:
        TypeError: The value cannot be written as JSON.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content; a missing path is no error.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write or replace a JSON file with a value; see `write_text` for crashes.

    Raises:
        OSError: The file cannot be written; its old content is still there.
        TypeError: The value cannot be written as JSON.
        ValueError: The value contains infinity or NaN.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
