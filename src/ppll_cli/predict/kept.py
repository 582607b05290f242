"""Keeps measured times in files of the user's cache folder.

A problem with the folder or a file never stops a program: it only has to measure again.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppll_cli.leaves.files import problem_of, read_json, write_json

log = logging.getLogger(__name__)

Record = dict[str, float]
"""The values of one measurement by name: seconds, bytes and counts."""

COSTS = {"forward_s", "backward_s", "saved_bytes", "params", "frozen_bytes"}

FIELDS = {
    "unit": {*COSTS, "recomputed_bytes"},
    "halves": {"input_s", "weight_s"},
    "auxiliary": COSTS,
    "copy": {"seconds"},
    "parameter": {"step_s", "bytes"},
}
"""The names of a record's values, by the first word of the record's key."""

MOST = 1e15
"""Largest value in a record; a file with a larger one is damaged."""


class Kept:
    """Reads and writes files of measured times in a folder. The folder need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writable = folder, True

    def read(self, name: str) -> dict[str, Record]:
        """Return the records of a file by key; {} if the file is missing or damaged."""
        path = self._folder / name
        try:
            return _records(path)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            said = "the times kept in %s cannot be read, and the file is replaced: %s"
            log.warning(said, path, problem_of(error))
            return {}

    def write(self, name: str, records: Mapping[str, Record]) -> None:
        """Write or replace a file.

        If a folder has the file's name, it is removed if it is empty, and renamed otherwise. A
        failure is only logged, and after it nothing more is written.
        """
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
    found = read_json(path)
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
        and all(type(value) in (int, float) and 0 <= value <= MOST for value in record.values())
    )


def _put_aside(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
        return
    folder.rename(folder.with_name(f"{folder.name}.aside"))
