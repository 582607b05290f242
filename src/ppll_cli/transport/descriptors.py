"""File descriptors: whether a run's processes may have as many as they need. Imports no torch."""

import resource
from collections.abc import Iterable
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Protocol

from ppll_cli.errors import ConfigError

OWN = 128
"""What a process opens besides: files, libraries, and, for each device it sees, CUDA's driver."""

PER_WORKER = 3
"""In the parent: how a worker's end is noticed, how its parent's is, and its reports."""

PER_CHANNEL = 5
"""In the parent, which keeps them for as long as the workers live: two pipes, and the memory."""


class Counts(Protocol):
    """What is asked of a transport here."""

    def descriptors(self, slots: int, tensors: int) -> int:
        """How many file descriptors an end of a channel takes at most."""
        ...


def raise_limit() -> float:
    """Raise this process's limit as far as it may; its children inherit it.

    Returns:
        How many file descriptors it may have.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS may allow less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else soft


def check_descriptors(
    name: str,
    transport: Counts,
    workers: int,
    channels: Iterable[tuple[int, int, int]],
    tensors: int,
) -> None:
    """Check that the parent and each worker may have as many file descriptors as they need.

    Args:
        name: The transport's.
        transport: What makes the channels.
        workers: How many there are.
        channels: Of each channel the stage that sends, the stage that receives, and the slots.
        tensors: How many a message has at most.

    Raises:
        ConfigError: They may not.
    """
    limit = raise_limit()
    channels = list(channels)
    parent = _open_now() + OWN + PER_WORKER * workers + PER_CHANNEL * len(channels)
    ends = [0] * workers
    for source, target, slots in channels:
        for stage in (source, target):
            ends[stage] += transport.descriptors(slots, tensors)
    worker = OWN + max(ends)
    needed = max(parent, worker)
    if needed <= limit:
        return
    problem = f"needs {needed} file descriptors, and may have {limit:.0f}"
    remedy = f"allow more (`ulimit -n {needed}`, which may need an administrator)"
    if worker <= limit:
        remedy += " or use fewer gpus"
        raise ConfigError("gpus", workers, f"the parent process {problem}", remedy)
    if name != "ring":
        remedy += " or use transport=ring"
    raise ConfigError("transport", name, f"a worker {problem}", remedy)


def _open_now() -> int:
    """How many this process has."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(list(Path(folder).iterdir()))
    return 0
