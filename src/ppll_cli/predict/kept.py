"""Keeps measured times in files of the user's cache folder.

The cache only saves time, so no problem with its folder or files stops a program: if a file cannot
be read, this program measures again; if a file cannot be written, the next program measures again.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from ppll_cli.leaves.files import write_json

log = logging.getLogger(__name__)

Record = dict[str, float]
"""The measurements of one unit, network or copy: seconds, bytes or counts by name."""

FIELDS = {
    "unit": {"forward_s", "backward_s", "saved_bytes", "recomputed_bytes", "params"},
    "halves": {"input_s", "weight_s"},
    "auxiliary": {"forward_s", "backward_s", "saved_bytes", "params"},
    "copy": {"seconds"},
    "parameter": {"step_s", "bytes"},
}
"""The fields of a record, by the first word of its key."""

MOST = 1e15
"""Largest value that a field can have; a file with a larger value is damaged."""

MOST_BYTES = 1 << 26
"""Largest size of a file that is read. Files that this program writes have a few kilobytes."""


class Kept:
    """The folder of the files with measured times. The folder need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writable = folder, True

    def read(self, name: str) -> dict[str, Record]:
        """Return the records of a file by key; none if the file is missing or damaged."""
        path = self._folder / name
        try:
            if not path.is_file():  # opening a FIFO could wait for ever
                if path.exists():
                    raise ValueError("it is not a file")
                return {}
            return _records(path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            problem = " ".join(str(error).split()) or type(error).__name__
            log.warning(
                "the times kept in %s cannot be read, and the file is replaced: %s", path, problem
            )
            return {}

    def write(self, name: str, records: Mapping[str, Record]) -> None:
        """Write a file, and replace any file or folder of this name; log a warning on failure."""
        if not self._writable:
            return
        path = self._folder / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if path.is_dir() and not path.is_symlink():
                _put_aside(path)
            write_json(path, records)
        except OSError as error:
            self._writable = False  # one warning is enough
            log.warning("measured times cannot be kept for the next run: %s", error)


def _records(path: Path) -> dict[str, Record]:
    """Return the records of a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file does not hold what `Kept.write` writes.
        RecursionError: The file's lists are nested too deeply for the parser.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError("it is too large")
    found = json.loads(content.decode())
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    for key, record in found.items():
        if not _is_record(key, record):
            raise ValueError(f"{key[:80]!r} is damaged")
    return found


def _is_record(key: str, record: Any) -> bool:
    return (
        isinstance(record, dict)
        and record.keys() == FIELDS.get(key.partition(" ")[0])
        and all(_is_amount(value) for value in record.values())
    )


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= MOST and isfinite(value)


def _put_aside(folder: Path) -> None:
    """Remove a folder if it is empty, else rename it, so that a file can have its name."""
    with suppress(OSError):
        folder.rmdir()
        return
    folder.rename(folder.with_name(f"{folder.name}.aside"))
