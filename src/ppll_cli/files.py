"""Files that are replaced as a whole or not at all, files that grow, folders that do not stay.

Imports nothing heavy.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

_SCRATCH: set[str] = set()


def write_text(path: Path, text: str) -> None:
    """Write a file, or replace it, so that no crash leaves a part of it under its name.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same for what is no text.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError:
        with suppress(OSError):  # the first failure says more
            unfinished.unlink(missing_ok=True)
        raise


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file's whole lines; none of a file that is not there.

    Raises:
        OSError: It cannot be read.
    """
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def write_json(path: Path, value: Any) -> None:
    """The same for what JSON can say: neither infinity nor NaN.

    Raises:
        OSError: It cannot be written.
        ValueError: It holds infinity or NaN.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is there while the body runs."""
    with TemporaryDirectory(prefix="ppll-run-", ignore_cleanup_errors=True) as folder:
        _SCRATCH.add(folder)
        try:
            yield Path(folder)
        finally:
            _SCRATCH.discard(folder)


def lasting_scratch() -> str:
    """A folder of this user's alone that is there until `remove_scratch`."""
    folder = mkdtemp(prefix="ppll-run-")
    _SCRATCH.add(folder)
    return folder


def remove_scratch() -> None:
    """Remove such folders, from a signal handler too; the program must leave after that."""
    for folder in _SCRATCH:
        shutil.rmtree(folder, ignore_errors=True)
