"""Checks whether processes can share CUDA memory, and whether a device can access another's."""

import os
import re

from ppll_cli.leaves import cuda

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables with settings of torch's CUDA allocator: the new and the old name."""

NO_CACHE_VARIABLE = "PYTORCH_NO_CUDA_MEMORY_CACHING"
"""Environment variable that, with any value, turns torch's caching CUDA allocator off. torch can
share only memory of this allocator."""

# torch shares expandable segments by `pidfd_getfd`, which containers forbid (pytorch issue 165685).
# It does not share memory of cudaMallocAsync at all ("does not yet support shareIpcHandle").
_UNSHARED = re.compile(r"expandable_segments\s*:\s*True|backend\s*:\s*cudaMallocAsync")


def cannot_share() -> str | None:
    """Return why CUDA memory cannot be shared with another process; None if it can be shared."""
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
