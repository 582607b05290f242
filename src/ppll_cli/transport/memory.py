"""Where the slots of a ring are."""

import pickle
import shutil
import weakref
from contextlib import suppress
from math import ceil
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Protocol

import torch
import torch.multiprocessing  # lets ForkingPickler share tensors
from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")

USED_AT_MOST = 0.9
"""Of what is free there: the system and other programs need some as well."""

_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device that the process uses."""


class Memory(Protocol):
    """The memory of a ring, seen from one end.

    Attributes:
        tensor: uint8 [bytes]; None where it is not there yet.
    """

    tensor: Tensor | None

    def open(self) -> None:
        """Open it at the producer's end."""
        ...

    def offer(self) -> bytes:
        """Open it at the consumer's end, and say what the producer needs for that, if it does."""
        ...

    def accept(self, offer: bytes) -> None:
        """Share what the consumer has offered."""
        ...


class HostMemory:
    """Memory that both processes have from their start.

    Args:
        tensor: Shared memory.
        pinned: Whether CUDA devices copy from and to it, which they only do beside other work where
            its pages cannot be moved.
    """

    def __init__(self, tensor: Tensor, pinned: bool) -> None:
        self.tensor: Tensor | None = tensor
        self._pinned = pinned

    def open(self) -> None:
        """Pin it in this process, until this object is gone."""
        if self._pinned:
            assert self.tensor is not None
            if _pin(self.tensor):
                # At the end of a process CUDA does it by itself.
                weakref.finalize(self, _unpin, self.tensor).atexit = False

    def offer(self) -> bytes:
        """Pin it in this process; there is nothing to say."""
        self.open()
        return b""

    def accept(self, offer: bytes) -> None:
        """Nothing is offered."""
        raise AssertionError(offer)


class DeviceMemory:
    """Memory that a process makes on its device; the consumer's may give it to the producer's.

    Args:
        size: In bytes.
        device: Where.
    """

    def __init__(self, size: int, device: str) -> None:
        self.tensor: Tensor | None = None
        self._size, self._device = size, torch.device(device)

    def open(self) -> None:
        """The producer's end waits for the offer."""

    def make(self) -> None:
        """Make it, for other streams and processes to use."""
        self.tensor = torch.empty(self._size, dtype=torch.uint8, device=self._device)
        if self._device.type == "cuda":
            # It may have belonged to a tensor that what is queued here still uses, of which nobody
            # else knows.
            torch.cuda.synchronize(self._device)

    def offer(self) -> bytes:
        """Make it, and a handle for the other process."""
        self.make()
        return bytes(ForkingPickler.dumps(self.tensor))

    def accept(self, offer: bytes) -> None:
        """Open the handle."""
        # What a worker of the same run has written, as with multiprocessing's own messages.
        self.tensor = pickle.loads(offer)


def _pin(tensor: Tensor) -> bool:
    """Pin host memory and return True, or False where it is pinned already."""
    if tensor.is_pinned():  # by the other end, in the same process
        return False
    size = tensor.nbytes
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = int(runtime.cudaHostRegister(tensor.data_ptr(), size, _PORTABLE))
    if error:
        raise RuntimeError(f"{size >> 20} MiB of host memory cannot be pinned: CUDA error {error}")
    return True


def _unpin(tensor: Tensor) -> None:
    """Undo `_pin` before the memory is unmapped.

    CUDA would take other memory that is mapped at the same address later for pinned, and go on
    copying to and from the old pages.
    """
    torch.cuda.synchronize()  # copies may still be queued
    torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())  # type: ignore[no-untyped-call]


def no_room(size: int) -> str | None:
    """Why shared memory has no room for so many bytes; None if it has.

    Memory that is missing is only noticed when it is touched, and the process is killed then.
    """
    try:
        there = shutil.disk_usage(SHARED_MEMORY)
    except OSError:  # another system keeps it elsewhere
        return None
    if size <= USED_AT_MOST * there.free:
        return None
    return f"its slots take {size >> 20} MiB, and {SHARED_MEMORY} has {there.free >> 20} MiB left"


def more_room(size: int) -> str:
    """What helps where shared memory has no room for so many bytes."""
    there = shutil.disk_usage(SHARED_MEMORY)
    total = ceil((there.total - there.free + size / USED_AT_MOST) / 2**20)
    return (
        f"enlarge {SHARED_MEMORY} to {total} MiB (docker run --shm-size={total}m), or use a "
        "smaller batch_size"
    )


def remove_left(process_id: int) -> None:
    """Remove what a worker that has ended left of shared memory.

    torch counts who uses CUDA memory that is shared in a file, which it removes at the end of a
    program that cleans up after itself; workers are ended without that.
    """
    for path in SHARED_MEMORY.glob(f"torch_{process_id}_*"):
        with suppress(OSError):  # somebody else's, who shares the folder but not the numbers
            path.unlink()
