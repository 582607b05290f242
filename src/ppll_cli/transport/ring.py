"""The fast way: a ring of slots in shared memory, made once and used for every message.

A sender copies its tensors into a slot, and a token with the header and the tensors' layout goes
through a pipe; the receiver computes on the slot in place. Slots are used in turn and given back in
the order in which they were received, so neither token needs to name one. One producer and one
consumer need no lock, so the ends of two pipes and the memory are all that there is.
"""

import shutil
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch.multiprocessing
from torch import Tensor

from ppll_cli.transport.channel import ALIGNMENT, Header, aligned

SHARED_MEMORY = "/dev/shm"


class _Layout(NamedTuple):
    """Where a tensor lies in a slot."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int  # bytes


class _Slots:
    """The memory, seen from either end, and which slot comes next.

    Args:
        memory: uint8 [slots * size], shared.
        slots: How many.
        size: Bytes of each.
    """

    def __init__(self, memory: Tensor, slots: int, size: int) -> None:
        self.memory, self.slots, self.size = memory, slots, size
        self._next = 0

    def turn(self) -> int:
        """Where the next slot starts, in bytes."""
        start = self._next * self.size
        self._next = (self._next + 1) % self.slots
        return start

    def view(self, layout: _Layout, start: int) -> Tensor:
        """A tensor in the slot that starts there."""
        _, dtype, shape, stride, offset = layout
        first = (start + offset) // dtype.itemsize
        view: Tensor = torch.empty(0, dtype=dtype)
        return view.set_(self.memory.untyped_storage(), first, shape, stride)


class RingSender:
    """The producer's end; see `channel.Sender`."""

    def __init__(self, messages: Connection, returned: Connection, slots: _Slots) -> None:
        self._messages, self._returned, self._slots = messages, returned, slots
        self._free = slots.slots
        self.bytes_sent = 0

    def wait(self, timeout_s: float) -> bool:
        """Wait until a slot is free; whether one is."""
        while self._returned.poll(timeout_s if self._free == 0 else 0):
            self._returned.recv_bytes()
            self._free += 1
        return self._free > 0

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors into the next slot.

        Raises:
            ValueError: They do not fit.
        """
        layouts, end = [], 0
        for name, tensor in tensors.items():
            layout = _Layout(name, tensor.dtype, tuple(tensor.shape), _strides(tensor), end)
            layouts.append(layout)
            end += aligned(tensor.numel() * tensor.itemsize)
        if end > self._slots.size:
            shapes = {layout.name: list(layout.shape) for layout in layouts}
            raise ValueError(f"{shapes} take {end} bytes; a slot has {self._slots.size}")
        start = self._slots.turn()
        for layout, tensor in zip(layouts, tensors.values(), strict=True):
            self._slots.view(layout, start).copy_(tensor.detach())
            self.bytes_sent += tensor.numel() * tensor.itemsize
        self._free -= 1
        self._messages.send((header, layouts))


class RingReceiver:
    """The consumer's end; see `channel.Receiver`. What it receives lies in the slot itself."""

    def __init__(self, messages: Connection, returned: Connection, slots: _Slots) -> None:
        self._messages, self._returned, self._slots = messages, returned, slots
        self._message: tuple[Header, list[_Layout]] | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message is there; whether one is."""
        return self._message is not None or self._messages.poll(timeout_s)

    def peek(self) -> Header:
        """The header of the next message."""
        if self._message is None:
            self._message = self._messages.recv()
        return self._message[0]

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """The next message; its tensors are the slot's until that is released."""
        header = self.peek()
        assert self._message is not None
        start = self._slots.turn()
        tensors = {layout.name: self._slots.view(layout, start) for layout in self._message[1]}
        self._message = None
        return header, tensors

    def release(self) -> None:
        """Give the oldest slot back."""
        self._returned.send_bytes(b"\0")


class RingTransport:
    """Channels of slots in shared memory.

    Args:
        depth: How many slots each channel has beyond those that a schedule holds.
    """

    def __init__(self, *, depth: int) -> None:
        self.depth = depth

    def obstacle(self, size: int, devices: Iterable[str]) -> str | None:
        """Why channels of `size` bytes in all cannot be made here; None if they can."""
        if any(device != "cpu" for device in devices):
            return "it is for CPU workers"
        free = _free_bytes()
        # Memory that is not there is only noticed when it is touched, and kills the process then.
        if free is not None and size > 0.9 * free:
            return f"its slots take {size >> 20} MiB, and {SHARED_MEMORY} has {free >> 20} MiB left"
        return None

    def channel(self, slots: int, size: int) -> tuple[RingSender, RingReceiver]:
        """The two ends of a new channel."""
        size = max(ALIGNMENT, aligned(size))
        memory = torch.zeros(slots * size, dtype=torch.uint8)
        memory.share_memory_()  # type: ignore[no-untyped-call]
        receive_messages, send_messages = torch.multiprocessing.Pipe(duplex=False)
        receive_returned, send_returned = torch.multiprocessing.Pipe(duplex=False)
        return (
            RingSender(send_messages, receive_returned, _Slots(memory, slots, size)),
            RingReceiver(receive_messages, send_returned, _Slots(memory, slots, size)),
        )


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Those of a copy: the tensor's own where it fills its memory without gaps or overlaps."""
    if tensor.is_contiguous():
        return tuple(tensor.stride())
    return tuple(torch.empty_like(tensor, device="meta").stride())


def _free_bytes() -> int | None:
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # another system keeps it elsewhere
        return None
