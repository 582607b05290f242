"""What CUDA devices and processes can share. What is read of the environment is read here."""

import os
import re

from ppll_cli.leaves import cuda

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Settings of torch's allocator for CUDA memory: the name, and the one that it had before."""

NO_CACHE_VARIABLE = "PYTORCH_NO_CUDA_MEMORY_CACHING"
"""Turns that allocator off, whatever its value is. torch shares no memory from elsewhere."""

# Memory of the first kind torch shares by way of `pidfd_getfd`, which containers forbid (pytorch
# issue 165685); of the second it does not share any ("does not yet support shareIpcHandle").
_UNSHARED = re.compile(r"expandable_segments\s*:\s*True|backend\s*:\s*cudaMallocAsync")


def cannot_share() -> str | None:
    """Why CUDA memory cannot be given to another process; None if it can."""
    if NO_CACHE_VARIABLE in os.environ:
        return f"{NO_CACHE_VARIABLE} is set, and such CUDA memory cannot be shared"
    for variable in ALLOCATOR_VARIABLES:
        found = _UNSHARED.search(os.environ.get(variable, ""))
        if found is not None:
            return f"{variable} has {found[0]}, and such CUDA memory cannot be shared"
    return None


def cannot_reach(source: str, target: str) -> str | None:
    """Why one CUDA device cannot write into another's memory; None if it can."""
    if source == target or cuda.can_access_peer(source, target):
        return None
    one, other = sorted((source, target))
    return f"there is no peer access between {one} and {other}"
