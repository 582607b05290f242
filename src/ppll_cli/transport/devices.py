"""Checks whether processes can share CUDA memory, and whether a device can access another's."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ppll_cli.leaves import cuda

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables with settings of torch's CUDA allocator: the new and the old name."""

NO_CACHE_VARIABLE = "PYTORCH_NO_CUDA_MEMORY_CACHING"
"""Environment variable that, with any value, turns torch's caching CUDA allocator off. torch can
share only memory of this allocator."""

# torch shares expandable segments by `pidfd_getfd`, which containers forbid (pytorch issue 165685).
# It does not share memory of cudaMallocAsync at all ("does not yet support shareIpcHandle").
_UNSHARED = re.compile(r"expandable_segments\s*:\s*True|backend\s*:\s*cudaMallocAsync")


def no_ipc(*devices: str) -> str | None:
    """Return why one of these CUDA devices does not support CUDA IPC; None if all support it."""
    for device in devices:
        if not cuda.supports_ipc(device):
            return f"{device} does not support CUDA IPC"
    return None


def cannot_share(*devices: str) -> str | None:
    """Return why CUDA memory of one of these devices cannot be shared with another process.

    Return None if the memory of each device can be shared.
    """
    if (reason := no_ipc(*devices)) is not None:
        return f"{reason}, so CUDA memory cannot be shared"
    if NO_CACHE_VARIABLE in os.environ:
        return f"{NO_CACHE_VARIABLE} is set, so CUDA memory cannot be shared"
    for variable in ALLOCATOR_VARIABLES:
        found = _UNSHARED.search(os.environ.get(variable, ""))
        if found is not None:
            return f"{variable} has {found[0]}, so CUDA memory cannot be shared"
    return None


def cannot_reach(source: str, target: str) -> str | None:
    """Return why CUDA device `source` cannot access memory of `target`; None if it can."""
    if source == target or cuda.can_access_peer(source, target):
        return None
    one, other = sorted((source, target))
    return f"there is no peer access between {one} and {other}"


@contextmanager
def cuda_ipc() -> Iterator[None]:
    """Use CUDA IPC in the body of the `with`.

    Raises:
        RuntimeError: The body raised a RuntimeError. The new error also names a remedy.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise RuntimeError(
            f"two processes cannot share memory and events of a CUDA device: {reason}; if this "
            "machine forbids CUDA IPC, as some containers do, use transport.ipc=false"
        ) from error
