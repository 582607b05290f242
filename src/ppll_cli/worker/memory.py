"""Measures a worker's memory, and keeps freed memory for reuse."""

import ctypes
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


class Memory:
    """The memory that the worker uses: now, and at its peak since the steady state began.

    On CUDA this is the memory of all tensors. On CPU under Linux it is the resident size of the
    process, minus its size when this object was created. On other systems it is unknown.
    A peak includes the peak of an earlier process that `continue_from` was given.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _status("VmRSS")
        self._earlier: tuple[int | None, int | None] = None, None
        self._steady = False

    def begin_peak(self) -> None:
        """Begin to measure the peak. Call this when the steady state begins."""
        self._steady = True
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self._before = None  # the peak is unknown, because it was not reset

    def continue_from(self, peak: int | None, reserved: int | None) -> None:
        """Include the peaks of an earlier process: what its `peak` and `reserved` returned."""
        self._earlier = peak, reserved

    def now(self) -> int | None:
        """Return the memory in bytes; None if unknown, for example before CUDA is used."""
        if self._device.type == "cuda":
            started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            return torch.cuda.memory_allocated(self._device) if started else None
        return self._growth("VmRSS")

    def peak(self) -> int | None:
        """Return the memory's peak in bytes; None if it is unknown or not measured yet."""
        earlier, _ = self._earlier
        if not self._steady:
            return earlier
        if self._device.type == "cuda":
            return max(torch.cuda.max_memory_allocated(self._device), earlier or 0)
        grown = self._growth("VmHWM")
        return None if grown is None else max(grown, earlier or 0)

    def reserved(self) -> int | None:
        """Return the peak of the memory that torch's CUDA allocator holds, in bytes.

        Some papers report this peak. It is None on CPU, or if it is not measured yet.
        """
        _, earlier = self._earlier
        if not self._steady or self._device.type != "cuda":
            return earlier
        return max(torch.cuda.max_memory_reserved(self._device), earlier or 0)

    def _growth(self, field: str) -> int | None:
        size = _status(field)
        return None if size is None or self._before is None else max(0, size - self._before)


def keep_freed_memory() -> None:
    """Make this process, and processes forked from it, keep freed memory for reuse.

    It would take time to request this memory again for each batch. Do nothing without glibc.
    """
    # By default glibc returns large blocks to the system and requests them again, page by page, for
    # the next batch. This took about 8 % of the time of training ResNet-32.
    # Other C libraries have no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)


def _status(field: str) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:  # for example in a chroot without /proc
        return None
    for line in lines:
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
