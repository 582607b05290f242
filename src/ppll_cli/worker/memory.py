"""How much memory a worker uses, and how it is kept."""

import ctypes
import sys
from pathlib import Path

import torch


class PeakMemory:
    """The most memory in use since the steady state began.

    CUDA: the most that tensors had allocated; `reserved` is what torch's allocator had taken of the
    device for them, because papers report either. Linux, CPU: the high-water mark of the process,
    less its size when this object was made, before the model was built. Elsewhere unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _status("VmRSS")

    def reset(self) -> None:
        """The steady state begins."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self._before = None  # the mark cannot be reset here, so nothing true can be said

    def read(self) -> int | None:
        """In bytes; null where it is unknown."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = _status("VmHWM")
        return None if peak is None or self._before is None else max(0, peak - self._before)

    def reserved(self) -> int | None:
        """CUDA: the most that torch's allocator had reserved, in bytes; elsewhere null."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class CurrentMemory:
    """The memory in use now, in the terms of `PeakMemory`, from this process's size at its start.

    CUDA: what tensors have allocated; null until something is on the device, which this does not
    begin to use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _status("VmRSS")

    def read(self) -> int | None:
        """In bytes; null where it is unknown."""
        if self._device.type == "cuda":
            started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            return torch.cuda.memory_allocated(self._device) if started else None
        now = _status("VmRSS")
        return None if now is None or self._before is None else max(0, now - self._before)


def keep_freed_memory() -> None:
    """Have this process, and those forked from it, keep memory that was freed for the next use.

    By default glibc gives large pieces back to the system and gets them again for the next batch,
    page by page, which cost ResNet-32 about a twelfth of its time. Elsewhere nothing happens.
    """
    # Other libraries do not have it.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)


def _status(field: str) -> int | None:
    if sys.platform != "linux":
        return None
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
