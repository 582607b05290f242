"""Measures a worker's memory, and keeps freed memory for reuse."""

import ctypes
import sys
from pathlib import Path

import torch


class PeakMemory:
    """The peak memory of the worker since the steady state began.

    On CUDA, `read` returns the peak memory of tensors, and `reserved` the peak memory of torch's
    allocator; papers report either. On CPU under Linux, `read` returns the peak resident size of
    the process, minus its size when this object was created. On other systems the peak is unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _status("VmRSS")
        self._earlier: tuple[int | None, int | None] = None, None

    def reset(self) -> None:
        """Restart the measurement, when the steady state begins."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self._before = None  # unknown: the peak may be from before the reset

    def continue_from(self, peak: int | None, reserved: int | None) -> None:
        """Include the peaks in bytes that `read` and `reserved` returned in an earlier process."""
        self._earlier = peak, reserved

    def read(self) -> int | None:
        """Return the peak in bytes; None if unknown."""
        if self._device.type == "cuda":
            return max(torch.cuda.max_memory_allocated(self._device), self._earlier[0] or 0)
        peak = _status("VmHWM")
        if peak is None or self._before is None:
            return None
        return max(0, peak - self._before, self._earlier[0] or 0)

    def reserved(self) -> int | None:
        """Return the peak of torch's allocator in bytes; None on CPU."""
        if self._device.type != "cuda":
            return None
        return max(torch.cuda.max_memory_reserved(self._device), self._earlier[1] or 0)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


class CurrentMemory:
    """The memory that the worker uses now.

    On CUDA it is the memory of tensors, which is unknown before the process uses CUDA. On CPU under
    Linux, it is the resident size of the process, minus its size when this object was created.
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

    By default glibc returns large blocks to the system and requests them again, page by page, for
    the next batch. This took about 8 % of the time of training ResNet-32.
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
