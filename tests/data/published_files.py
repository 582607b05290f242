"""Writes files as if they had been published."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

Files = dict[str, bytes]
"""The content of each file, by name."""


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def listed(files: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Return name and MD5 sum of each file, as torchvision lists them."""
    return [(name, md5(content)) for name, content in files.items()]


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def packed(folder: str, files: Mapping[str, bytes]) -> bytes:
    """Return an archive with the files in a folder."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()
