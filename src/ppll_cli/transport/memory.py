"""Allocates and shares the memory of a ring, which holds the slots of a channel."""

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
    """A ring's memory, as one end sees it: `tensor`, uint8 [bytes], or None if not yet open.

    At the start, the sender calls `open`, and the receiver calls `offer`. If `offer` returns data,
    the receiver sends them to the sender, which calls `accept` with them.
    """

    tensor: Tensor | None = None

    def open(self) -> None:
        """Prepare the memory if both processes share it from the start; else do nothing."""

    def offer(self) -> bytes:
        """Open the memory at the receiver's end; return data for `accept`, empty if not needed."""
        self.open()
        return b""

    def accept(self, offer: bytes) -> None:
        """Open the memory at the sender's end by the data that the receiver's `offer` returned."""
        raise AssertionError(offer)


class HostMemory(Memory):
    """Host memory that both processes share from the start.

    `tensor` is the memory, uint8 [bytes]. `pinned` says whether to pin it: CUDA devices copy
    asynchronously only from and to pinned memory.
    """

    def __init__(self, tensor: Tensor, pinned: bool) -> None:
        self.tensor = tensor
        self._pinned = pinned

    def open(self) -> None:
        """Pin the memory in this process if `pinned` was set, until this object is deleted."""
        if self._pinned:
            assert self.tensor is not None
            if _pin(self.tensor):
                # At the end of a process CUDA unpins the memory by itself.
                weakref.finalize(self, _unpin, self.tensor).atexit = False


class DeviceMemory(Memory):
    """Memory that the receiver allocates on its device and shares with the sender by CUDA IPC.

    To allocate memory that is not shared, call only `make`. `size` is in bytes.
    """

    def __init__(self, size: int, device: str) -> None:
        self._size, self._device = size, torch.device(device)

    def make(self) -> None:
        """Allocate the memory, and wait until other streams and processes may use it."""
        self.tensor = torch.empty(self._size, dtype=torch.uint8, device=self._device)
        if self._device.type == "cuda":
            # Queued work may still use this memory for a tensor that has been freed. Other streams
            # and processes do not wait for that work.
            torch.cuda.synchronize(self._device)

    def offer(self) -> bytes:
        """Allocate the memory, and return a handle for the sender's process."""
        self.make()
        with cuda_ipc():
            return bytes(ForkingPickler.dumps(self.tensor))

    def accept(self, offer: bytes) -> None:
        """Open the memory with the receiver's handle, which is in `offer`."""
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
    """Pin host memory, and return True; if it is already pinned, only return False."""
    if tensor.is_pinned():  # both ends are in this process, and the other end has pinned it
        return False
    size = tensor.nbytes
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = int(runtime.cudaHostRegister(tensor.data_ptr(), size, _PORTABLE))
    if error:
        raise RuntimeError(f"{size >> 20} MiB of host memory cannot be pinned: CUDA error {error}")
    return True


def _unpin(tensor: Tensor) -> None:
    """Undo `_pin` before the memory is unmapped.

    If other memory were mapped at a pinned address, CUDA would still use the old pages.
    """
    torch.cuda.synchronize()  # copies may still be queued
    torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())  # type: ignore[no-untyped-call]


def check_writable() -> None:
    """Check that there is shared memory, which every run needs, even one without channels.

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

    The text begins with `what`. Call this before writing: the system kills a process that writes to
    full shared memory.
    """
    if fits(size):
        return None
    return f"{what} take {ceil(size / 2**20)} MiB, but {what_is_left()}"


def fits(size: int) -> bool:
    """Return whether shared memory has room for `size` bytes."""
    try:
        return size <= _room()
    except OSError:  # only Linux has this folder
        return True


def what_is_left() -> str:
    """Return a text that says for how many bytes shared memory has room."""
    return f"{SHARED_MEMORY} has room for {int(_room()) >> 20} MiB"


def _room() -> float:
    return USED_AT_MOST * shutil.disk_usage(SHARED_MEMORY).free


def more_room(size: int) -> str:
    """Return what the user can do if shared memory has no room for `size` bytes."""
    there = shutil.disk_usage(SHARED_MEMORY)
    total = ceil((there.total - there.free + size / USED_AT_MOST) / 2**20)
    return (
        f"enlarge {SHARED_MEMORY} to {total} MiB (docker run --shm-size={total}m), or use a "
        "smaller batch_size"
    )


def remove_left(process_id: int) -> None:
    """Remove the files in shared memory that a worker left when it ended.

    torch counts the users of shared CUDA memory in a file. CUDA has files for shared events, with
    the process ID in hexadecimal in their names. A process that is killed, or ends by `os._exit` as
    workers do, does not remove its files.
    """
    for pattern in (f"torch_{process_id}_*", f"cuda.shm.*.{process_id:x}.*"):
        for path in SHARED_MEMORY.glob(pattern):
            with suppress(OSError):  # the file may belong to another container
                path.unlink()
