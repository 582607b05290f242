"""Files that are replaced as a whole or not at all, and what is read of those that grow.

Imports nothing heavy.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
