"""Processor and memory of this machine. Imports no torch."""

import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""The folder in which Linux shows the limits of a container. Versions 1 and 2 of cgroups have
different files there."""


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory_bytes() -> int | None:
    """Return the bytes of memory that this machine has; None if unknown.

    If this process is in a container with a smaller limit, return this limit.
    """
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    return min([whole, *(_numbers("memory.max") or _numbers("memory/memory.limit_in_bytes"))])


def core_quota() -> float | None:
    """Return how many cores' time this container may use, such as 2.5; None without a limit."""
    version_1 = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"
    found = _numbers("cpu.max") or [number for name in version_1 for number in _numbers(name)]
    if len(found) != 2 or min(found) <= 0:  # version 1 writes -1 for no limit
        return None
    return found[0] / found[1]


def _numbers(name: str) -> list[int]:
    try:  # a file without a limit contains "max"
        return [int(word) for word in (CGROUP / name).read_text().split()]
    except (OSError, ValueError):
        return []
