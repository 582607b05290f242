"""Measures a worker's memory, and keeps freed memory for reuse."""

import ctypes
import sys
from pathlib import Path

import torch


class PeakMemory:
    """The peak memory of the worker since the steady state began.

    On CUDA, `read` gives the peak of what tensors had allocated, and `reserved` the peak of what
    torch's allocator had taken from the device; papers report either. On CPU under Linux it is the
    peak size of the process less its size when this object was made, before the model was built. On
    other systems it is unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _status("VmRSS")

    def reset(self) -> None:
        """Begin to measure anew: the steady state begins."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self._before = None  # without a reset the peak would include earlier work

    def read(self) -> int | None:
        """Return the peak in bytes; None if unknown."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = _status("VmHWM")
        return None if peak is None or self._before is None else max(0, peak - self._before)

    def reserved(self) -> int | None:
        """Return the peak that torch's allocator had reserved, in bytes; None except on CUDA."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


class CurrentMemory:
    """The memory in use now.

    On CUDA it is what tensors have allocated; unknown until this process uses CUDA, which this
    class never initializes. On CPU under Linux it is the growth of the process since this object
    was made. On other systems it is unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _status("VmRSS")

    def read(self) -> int | None:
        """Return the memory in bytes; None if unknown."""
        if self._device.type == "cuda":
            started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            return torch.cuda.memory_allocated(self._device) if started else None
        now = _status("VmRSS")
        return None if now is None or self._before is None else max(0, now - self._before)


def keep_freed_memory() -> None:
    """Make this process, and processes forked from it, keep freed memory for reuse.

    By default glibc returns large pieces to the system and requests them again for the next batch,
    page by page; this took about a twelfth of ResNet-32's time. Without glibc nothing happens.
    """
    # Other C libraries have no mallopt.
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
