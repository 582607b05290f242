"""Checks that a run's processes may open as many file descriptors as needed. Imports no torch."""

import resource
from collections.abc import Iterable
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from ppll_cli.errors import ConfigError

if TYPE_CHECKING:
    from ppll_cli.transport.channel import Transport

OWN = 128
"""Number of file descriptors that a process may need for files, libraries and the CUDA driver."""

PER_WORKER = 3
"""Number of file descriptors that the parent opens for each worker: two pipes, by which the parent
and the worker notice the end of the other process, and the connection for reports."""

PER_CHANNEL = 5
"""File descriptors that the parent opens for each channel and keeps until the workers end: the four
ends of two pipes, and the shared memory."""


def raise_limit() -> float:
    """Raise the limit of file descriptors as far as possible, and return the new limit.

    It is the limit of this process and of processes that it starts later. It may be `math.inf`.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS may refuse the hard limit that it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else soft


def check_descriptors(
    name: str,
    transport: "Transport",
    workers: int,
    channels: Iterable[tuple[int, int, int]],
    tensors: int,
) -> None:
    """Check that the parent and each worker may open as many file descriptors as they need.

    First raise the limit of file descriptors as far as possible (see `raise_limit`).

    Args:
        name: The user's option for `transport`, for the error message.
        transport: The transport that will make the channels.
        workers: Number of workers.
        channels: Three numbers for each channel: the index of the sending worker, the index of the
            receiving worker, and the number of slots.
        tensors: Largest number of tensors in a message.

    Raises:
        ConfigError: The raised limit is still too low.
    """
    limit = raise_limit()
    channels = list(channels)
    parent = _open_now() + OWN + PER_WORKER * workers + PER_CHANNEL * len(channels)
    ends = [0] * workers
    for source, target, slots in channels:
        for index in (source, target):
            ends[index] += transport.descriptors(slots, tensors)
    worker = OWN + max(ends)
    needed = max(parent, worker)
    if needed <= limit:
        return
    problem = f"needs {needed} file descriptors, but may open only {limit:.0f}"
    remedy = f"allow more (`ulimit -n {needed}`, which may need an administrator)"
    if worker <= limit:
        remedy += " or use fewer gpus"
        raise ConfigError("gpus", workers, f"the parent process {problem}", remedy)
    if name != "ring":
        remedy += " or use transport=ring"
    raise ConfigError("transport", name, f"a worker {problem}", remedy)


def _open_now() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(list(Path(folder).iterdir()))
    return 0
