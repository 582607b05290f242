"""Reads wandb's files. wandb itself no longer has a reader in Python."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a `.wandb` file: a header of 7 bytes, then a LevelDB log."""
    # The names in this module depend on the version of protobuf, and type checkers see none of
    # them.
    make: Any = import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (room := BLOCK - at % BLOCK) < 7:  # no room for the header of a chunk: padding
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)  # after a checksum
        if at + 7 + length > len(data):  # the record is still being written
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last chunk
            record = make()
            record.ParseFromString(parts)
            parts = b""
            yield record


@dataclass
class Recorded:
    """The content of a wandb run's file."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None
    statistics: int = 0

    @classmethod
    def of(cls, path: Path) -> "Recorded":
        found = cls()
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found.run = record.run
                found.config |= _items(record.run.config.update)
            elif kind == "config":
                found.config |= _items(record.config.update)
            elif kind == "history":
                found.rows.append(_items(record.history.item))
            elif kind == "summary":
                found.summary |= _items(record.summary.update)
            elif kind == "metric":
                found.metrics[record.metric.name or record.metric.glob_name] = record.metric
            elif kind == "artifact":
                found.artifacts.append(record.artifact)
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                found.artifacts.append(record.request.log_artifact.artifact)
            elif kind == "exit":
                found.exit_code = record.exit.exit_code
            elif kind == "stats":
                found.statistics += 1
        return found


def _items(items: Any) -> dict[str, Any]:
    return {
        "/".join(item.nested_key) if item.nested_key else item.key: json.loads(item.value_json)
        for item in items
    }


def recorded(folder: Path) -> list[Recorded]:
    """Return the wandb runs in a folder, oldest first."""
    files = sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    return [Recorded.of(file) for file in files]
