"""The limits of a container, under both versions of Linux's cgroups."""

import os
from pathlib import Path

import pytest

from ppll_cli.leaves import machine


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{content}\n")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "250000 100000"}, 2.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_cores_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    """Under version 1, a container with two of 64 cores had workers with 32 threads each."""
    write(tmp_path, files)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.core_quota() == quota


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "4096"}, 4096),
        ({"memory.max": "max"}, None),
        ({"memory/memory.limit_in_bytes": "4096"}, 4096),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ({}, None),
    ],
)
def test_memory_is_limited_by_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int | None
) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    write(tmp_path, files)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.memory_bytes() == (expected or whole)
