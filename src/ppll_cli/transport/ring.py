"""The fast way: a ring of slots in shared memory, made once and used for every message.

A sender copies its tensors into a slot, and a token goes through a pipe; the receiver computes on
the slot in place. The token has the header and the number of the layout, the names, dtypes, shapes
and strides of the tensors, which are spelled out when they are used for the first time. Slots are
used in turn and given back in the order in which they were received, so nothing names one. One
producer and one consumer need no lock, so the ends of two pipes and the memory are all there is.
"""

import pickle
import select
import shutil
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch.multiprocessing
from torch import Tensor

from ppll_cli.transport.channel import ALIGNMENT, Header, aligned

SHARED_MEMORY = "/dev/shm"


class _Tensor(NamedTuple):
    """What a tensor in a slot is like."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_Layout = tuple[_Tensor, ...]


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
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}

    def next(self, number: int, layout: _Layout) -> dict[str, Tensor]:
        """The tensors of the next slot, laid out in a way that has this number."""
        slot, self._next = self._next, (self._next + 1) % self.slots
        views = self._views.get((slot, number))
        if views is None:
            views = self._views[slot, number] = self._lay_out(slot * self.size, layout)
        return views

    def _lay_out(self, start: int, layout: _Layout) -> dict[str, Tensor]:
        views = {}
        storage = self.memory.untyped_storage()
        for name, dtype, shape, stride in layout:
            view: Tensor = torch.empty(0, dtype=dtype)
            views[name] = view.set_(storage, start // dtype.itemsize, shape, stride)
            start += aligned(view.nbytes)
        return views


class _End:
    """A pipe's end of which one can see quickly whether something can be read."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._poll: select.poll | None = None  # made where it is used: it cannot be sent

    def ready(self, timeout_s: float) -> bool:
        """Wait until something can be read; whether it can."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.connection.fileno(), select.POLLIN)
        return bool(self._poll.poll(1000 * timeout_s))


class RingSender:
    """The producer's end; see `channel.Sender`."""

    def __init__(self, messages: Connection, returned: Connection, slots: _Slots) -> None:
        self._messages, self._returned, self._slots = messages, _End(returned), slots
        self._free = slots.slots
        self._layouts: dict[_Layout, int] = {}
        self.bytes_sent = 0

    def wait(self, timeout_s: float) -> bool:
        """Wait until a slot is free; whether one is."""
        while self._returned.ready(timeout_s if self._free == 0 else 0):
            self._returned.connection.recv_bytes()
            self._free += 1
        return self._free > 0

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors into the next slot.

        Raises:
            ValueError: They do not fit.
        """
        layout = tuple(
            _Tensor(name, tensor.dtype, tuple(tensor.shape), _strides(tensor))
            for name, tensor in tensors.items()
        )
        number = self._layouts.get(layout)
        token: tuple[Any, ...] = (number, header)
        if number is None:
            self._check_size(tensors)
            number = self._layouts[layout] = len(self._layouts)
            token = (number, header, layout)
        views = self._slots.next(number, layout)
        for name, tensor in tensors.items():
            views[name].copy_(tensor.detach())
            self.bytes_sent += tensor.numel() * tensor.itemsize
        self._free -= 1
        # Connection.send would make a pickler of its own that knows tensors, which there are none.
        self._messages.send_bytes(pickle.dumps(token, pickle.HIGHEST_PROTOCOL))

    def _check_size(self, tensors: Mapping[str, Tensor]) -> None:
        size = sum(aligned(tensor.numel() * tensor.itemsize) for tensor in tensors.values())
        if size > self._slots.size:
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            raise ValueError(f"{shapes} take {size} bytes; a slot has {self._slots.size}")


class RingReceiver:
    """The consumer's end; see `channel.Receiver`. What it receives lies in the slot itself."""

    def __init__(self, messages: Connection, returned: Connection, slots: _Slots) -> None:
        self._messages, self._returned, self._slots = _End(messages), returned, slots
        self._layouts: list[_Layout] = []
        self._token: tuple[Any, ...] | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message is there; whether one is."""
        return self._token is not None or self._messages.ready(timeout_s)

    def peek(self) -> Header:
        """The header of the next message."""
        if self._token is None:
            # What a worker of the same run has written, as with multiprocessing's own messages.
            self._token = pickle.loads(self._messages.connection.recv_bytes())
            self._layouts += self._token[2:]
        return self._token[1]

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """The next message; its tensors are the slot's until that is released."""
        header = self.peek()
        assert self._token is not None
        number, self._token = self._token[0], None
        views = self._slots.next(number, self._layouts[number])
        return header, {name: view.detach() for name, view in views.items()}

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
