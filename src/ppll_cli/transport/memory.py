"""Allocates the memory of a channel's slots, and shares it between the two workers."""

import os
import pickle
import re
import shutil
import sys
import weakref
from contextlib import suppress
from math import ceil
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing  # lets ForkingPickler share tensors
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.scratch import SHARED_MEMORY
from ppll_cli.transport.devices import cuda_ipc

USED_AT_MOST = 0.9
"""Fraction of the free shared memory that a run may use. The rest is for other programs."""

_PORTABLE = 1
"""CUDA's flag cudaHostRegisterPortable: pin memory for every device that the process uses."""


class Memory:
    """The memory of a channel's slots. Sender and receiver have one such object each.

    At the start, the sender calls `open`, and the receiver calls `offer`. If `offer` returns data,
    the receiver sends them to the sender, which passes them to `accept`.

    Attributes:
        tensor: The memory, uint8 [bytes]; None before this end can use it.
    """

    tensor: Tensor | None = None

    def open(self) -> None:
        """Prepare the memory for use, unless the receiver must allocate it first."""

    def offer(self) -> bytes:
        """Prepare the memory at the receiver's end, and return data for the sender's `accept`.

        The result is empty if the sender needs no data.
        """
        self.open()
        return b""

    def accept(self, offer: bytes) -> None:
        """Open the memory at the sender's end; `offer` is what the receiver's `offer` returned."""
        raise AssertionError(offer)


class HostMemory(Memory):
    """Host memory, which is allocated before this object is made.

    Args:
        tensor: The memory, uint8 [bytes]. It is in shared memory if both ends use it.
        pinned: Whether `open` pins it. CUDA devices copy asynchronously only to and from pinned
            memory.
    """

    def __init__(self, tensor: Tensor, pinned: bool) -> None:
        self.tensor = tensor
        self._pinned = pinned

    def open(self) -> None:
        """Pin the memory if `pinned`. It is unpinned when this object is deleted.

        Raises:
            RuntimeError: CUDA cannot pin the memory.
        """
        if self._pinned:
            assert self.tensor is not None
            if _pin(self.tensor):
                # At the end of a process CUDA unpins the memory by itself.
                weakref.finalize(self, _unpin, self.tensor).atexit = False


class DeviceMemory(Memory):
    """Memory that the receiver allocates on its device and shares with the sender by CUDA IPC.

    `size` is in bytes.
    """

    def __init__(self, size: int, device: str) -> None:
        self._size, self._device = size, torch.device(device)

    def make(self) -> None:
        """Allocate the memory, and wait until it is no longer used by work queued before.

        Afterwards all streams may use it and, after `offer`, the sender's process too.
        """
        self.tensor = torch.empty(self._size, dtype=torch.uint8, device=self._device)
        if self._device.type == "cuda":
            # Queued work may still use this memory for a tensor that has been freed. Other streams
            # and processes do not wait for that work.
            torch.cuda.synchronize(self._device)

    def offer(self) -> bytes:
        """Allocate the memory, and return a CUDA handle for the sender's process.

        Raises:
            RuntimeError: CUDA IPC fails, or the memory cannot be allocated.
        """
        self.make()
        with cuda_ipc():
            return bytes(ForkingPickler.dumps(self.tensor))

    def accept(self, offer: bytes) -> None:
        """Open the memory; `offer` is the handle that the receiver's `offer` returned.

        Raises:
            RuntimeError: CUDA IPC fails.
        """
        # Unpickling is safe here: a worker of the same run wrote the bytes.
        with cuda_ipc():
            self.tensor = pickle.loads(offer)


def shared_zeros(size: int) -> Tensor:
    """Return zeros, uint8 [size], in shared memory; raise OSError if shared memory is full."""
    tensor = torch.zeros(size, dtype=torch.uint8)
    try:
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        found = re.search(r"</(torch_\w+)>: (.+) \((\d+)\)", str(error))
        if found is None:
            raise
        path = SHARED_MEMORY / found[1]
        path.unlink(missing_ok=True)  # torch leaves the file there
        raise OSError(int(found[3]), found[2], str(path)) from None
    return tensor


def _pin(tensor: Tensor) -> bool:
    if tensor.is_pinned():  # both ends are in this process, and the other end has pinned it
        return False
    size = tensor.nbytes
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = int(runtime.cudaHostRegister(tensor.data_ptr(), size, _PORTABLE))
    if error:
        raise RuntimeError(f"{size >> 20} MiB of host memory cannot be pinned: CUDA error {error}")
    return True


def _unpin(tensor: Tensor) -> None:
    torch.cuda.synchronize()  # copies may still be queued
    # If other memory were mapped at a pinned address later, CUDA would still use the old pages.
    torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())  # type: ignore[no-untyped-call]


def check_writable() -> None:
    """Check that this process can use shared memory, which every run needs.

    Raises:
        ConfigError: This process cannot create files in shared memory.
    """
    # Only Linux has this folder.
    if sys.platform != "linux" or os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return
    missing = not SHARED_MEMORY.exists()
    why = "does not exist" if missing else "cannot be written to"
    problem = f"{why}, but a run's processes share memory there"
    remedy = f"mount -t tmpfs -o mode=1777 tmpfs {SHARED_MEMORY}, as an administrator"
    if missing:
        remedy = f"mkdir {SHARED_MEMORY} && {remedy}"
    raise ConfigError("folder", SHARED_MEMORY, problem, remedy)


def no_room(size: int, what: str = "its slots") -> str | None:
    """Return why shared memory has no room for `size` bytes; None if it has room.

    Call this before writing: the system kills a process that writes to full shared memory.
    The text begins with `what`, which names the things that need these bytes.
    """
    if fits(size):
        return None
    return f"{what} take {ceil(size / 2**20)} MiB, but {what_is_left()}"


def fits(size: int) -> bool:
    """Return whether shared memory has room for `size` bytes. Outside Linux, return True."""
    try:
        return size <= _room()
    except OSError:  # only Linux has this folder
        return True


def what_is_left() -> str:
    """Return a text for error messages, such as "/dev/shm has room for 57 MiB"."""
    return f"{SHARED_MEMORY} has room for {int(_room()) >> 20} MiB"


def _room() -> float:
    return USED_AT_MOST * shutil.disk_usage(SHARED_MEMORY).free


def more_room(size: int) -> str:
    """Return the advice for a user whose shared memory has no room for `size` bytes."""
    there = shutil.disk_usage(SHARED_MEMORY)
    total = ceil((there.total - there.free + size / USED_AT_MOST) / 2**20)
    return (
        f"enlarge {SHARED_MEMORY} to {total} MiB (docker run --shm-size={total}m), or use a "
        "smaller batch_size"
    )


def remove_left(process_id: int) -> None:
    """Remove the files that a worker left in shared memory.

    torch and CUDA make such files for shared CUDA memory and events. A process does not remove
    them if it is killed, or if it ends by `os._exit`, as workers do.
    """
    # torch counts the users of shared memory in its files; CUDA's files are for shared events.
    for pattern in (f"torch_{process_id}_*", f"cuda.shm.*.{process_id:x}.*"):
        for path in SHARED_MEMORY.glob(pattern):
            with suppress(OSError):  # the file may belong to another container
                path.unlink()
