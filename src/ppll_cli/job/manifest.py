"""Writes, reads and checks the manifest of a checkpoint, `manifest.json`."""

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ppll_cli.job.parts import Counted, Part
from ppll_cli.leaves.files import digest_of, open_regular, problem_of, read_json, write_json

FORMAT = 1
"""Version of the manifest's format. The program refuses a manifest with a higher version."""

MANIFEST_FILE = "manifest.json"

_STAGE_FILE = re.compile(r"stage-\d+\.safetensors")


class DamagedError(Exception):
    """Raised when a checkpoint's files cannot be used; the message names file and problem."""


class LaterFormatError(DamagedError):
    """Raised when a newer version of the program wrote the manifest in a newer format."""


class UnreadableError(DamagedError):
    """Raised when the system does not let a file be read. The file may be intact."""


NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ELOOP}
"""The operating system's error numbers for a path at which there is no usable file."""


@dataclass(frozen=True)
class SavedFile:
    """Name, size and SHA-256 of a file that a stage wrote."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint's manifest. Old manifests may lack the fields with defaults."""

    step: int  # number of optimizer steps done
    epoch: int  # epoch of the last step; the first epoch is 1
    cuts: tuple[str, ...]  # names of the first units of modules 1, 2, ...
    metrics: dict[str, int | float | None]  # `Metrics.state` after the last stage saved its file
    files: tuple[SavedFile, ...]  # the stages' files
    parts: tuple[Part, ...] = ()  # parts of the run until this step (see `parts.py`)
    counted: tuple[Counted, ...] = ()  # workers' counts until this step (see `parts.Counted`)

    def write(self, folder: Path) -> None:
        """Write the manifest into a checkpoint's folder."""
        content = {"format": FORMAT, **asdict(self)}
        content["files"] = sorted(content["files"], key=lambda file: str(file["name"]))
        write_json(folder / MANIFEST_FILE, content | {"sha256": digest_of(content)})


_ADAPTER = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint, without comparing it with the checkpoint's files.

    Raises:
        DamagedError: The manifest cannot be used, or does not match its checksum.
        UnreadableError: The operating system refuses to read the manifest.
        LaterFormatError: A newer version of the program wrote the manifest.
    """
    try:
        content = read_json(folder / MANIFEST_FILE)
    except (OSError, ValueError) as error:
        raise _unusable(f"its manifest cannot be read: {problem_of(error)}", error) from None
    if not isinstance(content, dict):
        raise DamagedError("its manifest cannot be read: it is not a JSON object")
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        found = f"{folder.name} has format {version}"
        raise LaterFormatError(f"{found}, but this program reads formats up to {FORMAT}")
    manifest = _parsed(content)
    if content.get("sha256") != digest_of({k: v for k, v in content.items() if k != "sha256"}):
        raise DamagedError(f"{MANIFEST_FILE} does not match its checksum")
    return manifest


def _parsed(content: Mapping[str, Any]) -> Manifest:
    try:  # In strict mode, pydantic accepts a list for a tuple only when it reads JSON.
        return _ADAPTER.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(f"its manifest cannot be read: {where}: {first['msg']}") from None


def checked_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint, and compare the checkpoint's files with it.

    This reads every file completely.

    Raises:
        DamagedError: A file is missing, or does not match the manifest; or the manifest cannot be
            used (see `read_manifest`).
        UnreadableError: The system does not let a file be read.
        LaterFormatError: A newer version of the program wrote the manifest.
    """
    manifest = read_manifest(folder)
    for file in manifest.files:
        if not _STAGE_FILE.fullmatch(file.name):
            raise DamagedError(f"its manifest lists {file.name!r}, which is not a stage's file")
        path = folder / file.name
        try:
            with open_regular(path) as opened:
                size_bytes = path.stat().st_size
                if size_bytes != file.size_bytes:
                    problem = f"has {size_bytes} bytes instead of {file.size_bytes}"
                    raise DamagedError(f"{file.name} {problem}")
                if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                    raise DamagedError(f"{file.name} does not match its checksum")
        except FileNotFoundError:
            raise DamagedError(f"{file.name} is missing") from None
        except OSError as error:
            raise _unusable(f"{file.name}: {problem_of(error)}", error) from None
    return manifest


def _unusable(problem: str, error: Exception) -> DamagedError:
    unreadable = isinstance(error, OSError) and error.errno not in NO_FILE
    return UnreadableError(problem) if unreadable else DamagedError(problem)
