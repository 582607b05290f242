"""The fast way: a ring of slots in shared memory, made once and used for every message.

A sender copies its tensors into a slot, and a token goes through a pipe; the receiver computes on
the slot in place. The token has the header and the number of the layout, the names, dtypes, shapes
and strides of the tensors, which are spelled out when they are used for the first time. Slots are
used in turn and given back in the order in which they were received, so nothing names one.

Where the slots are (`memory`) and how the two ends take turns with one (`order`) depends on the
devices. Between CPU workers they are in shared memory, and nothing is needed beside the tokens.
Between CUDA workers they are on the consumer's device, or, where its memory cannot be shared with
the producer's process or reached from its device, in pinned host memory, from which the receiver
copies; events order the two ends in either.
"""

import logging
import pickle
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ppll_cli.transport.channel import ALIGNMENT, Header, WireDtype, aligned
from ppll_cli.transport.devices import cannot_reach, cannot_share
from ppll_cli.transport.memory import DeviceMemory, HostMemory, Memory, no_room
from ppll_cli.transport.order import CudaOrder, HostOrder, Order
from ppll_cli.transport.pipes import Ends, FreeSlots, Inlet, open_pipes
from ppll_cli.transport.slots import Layout, Slots, layout_of

log = logging.getLogger(__name__)


_Token = tuple[int, Header, bytes, Layout | None]
"""A layout's number, the header, and what is told once: the slot's event, and the layout."""


class RingSender:
    """The producer's end; see `channel.Sender`."""

    def __init__(self, ends: Ends, slots: Slots, order: Order) -> None:
        self._messages, self._slots, self._order = ends.messages, slots, order
        self._free = FreeSlots(ends.returned, 0 if slots.memory.tensor is None else slots.count)
        self._layouts: dict[Layout, tuple[int, int]] = {}  # its number, and the tensors' bytes
        self.bytes_sent = 0

    def open(self) -> None:
        """Open the memory, where it is there already."""
        self._slots.memory.open()

    def wait(self, timeout_s: float) -> bool:
        """Wait until a slot is free, and return whether there is one."""
        return self._free.wait(timeout_s, self._take)

    def _take(self, word: bytes) -> int:
        """Take what comes back, the memory before all else; returns how many slots it frees."""
        if self._slots.memory.tensor is None:
            self._slots.memory.accept(word)
            return self._slots.count
        if word:
            self._order.learn(word)
        return 1

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors into the next slot.

        Raises:
            ValueError: They do not fit.
        """
        layout = layout_of(tensors)
        known, spelled_out = self._layouts.get(layout), None
        if known is None:
            self._slots.check_room(layout)
            size = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
            known = self._layouts[layout] = len(self._layouts), size
            spelled_out = layout
        number, size = known
        slot, views = self._slots.next(number, layout)
        handle = self._order.fill(slot, views, tensors)
        self.bytes_sent += size
        self._free.count -= 1
        token: _Token = (number, header, handle, spelled_out)
        # Connection.send would make a pickler of its own that knows tensors, which there are none.
        self._messages.send_bytes(pickle.dumps(token, pickle.HIGHEST_PROTOCOL))


class RingReceiver:
    """The consumer's end; see `channel.Receiver`.

    What it receives lies in the slot itself, or in a copy on a device that cannot compute there.
    """

    def __init__(self, ends: Ends, slots: Slots, order: Order, device: str | None) -> None:
        self._messages, self._returned = Inlet(ends.messages), ends.returned
        self._slots, self._order, self._device = slots, order, device
        self._layouts: list[Layout] = []
        self._token: _Token | None = None
        self._oldest = 0

    def open(self) -> None:
        """Open the memory, and offer it to the producer where that does not have it."""
        offer = self._slots.memory.offer()
        if offer:
            self._returned.send_bytes(offer)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a message, and return whether there is one."""
        return self._token is not None or self._messages.ready(timeout_s)

    def peek(self) -> Header:
        """The header of the next message."""
        return self._peek()[1]

    def _peek(self) -> _Token:
        if self._token is None:
            # What a worker of the same run has written, as with multiprocessing's own messages.
            token: Any = pickle.loads(self._messages.connection.recv_bytes())
            self._token = token
        return self._token

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """The next message; its tensors are the slot's until that is released."""
        number, header, handle, layout = self._peek()
        self._token = None
        if layout is not None:
            self._layouts.append(layout)
        if handle:
            self._order.learn(handle)
        slot, views = self._slots.next(number, self._layouts[number])
        self._order.take(slot)
        if self._device is None:
            return header, {name: view.detach() for name, view in views.items()}
        device = self._device
        return header, {name: view.to(device, non_blocking=True) for name, view in views.items()}

    def release(self) -> None:
        """Give the oldest slot back."""
        slot, self._oldest = self._oldest, (self._oldest + 1) % self._slots.count
        self._returned.send_bytes(self._order.give_back(slot))


class RingTransport:
    """Channels of slots that are made once.

    Args:
        depth: How many slots each channel has beyond those that a schedule holds.
        wire_dtype: What numbers of float32 become where they cross a network.
    """

    def __init__(self, *, depth: int, wire_dtype: WireDtype | None = None) -> None:
        self.depth, self.wire_dtype = depth, wire_dtype
        self._told: set[str] = set()

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """Why channels of `size` bytes in all cannot be made here; None if they can."""
        pairs = combinations(dict.fromkeys(devices), 2)
        on_cuda = "cpu" not in devices
        if on_cuda and not cannot_share() and not any(cannot_reach(*pair) for pair in pairs):
            return None
        return no_room(size)

    def descriptors(self, slots: int, tensors: int) -> int:
        """Two pipes' ends, and the memory."""
        return 3

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[RingSender, RingReceiver]:
        """The two ends of a new channel."""
        size = max(ALIGNMENT, aligned(size))
        if "cpu" in (source, target):
            host = _on_host(slots * size, pinned=False)
            return ring(slots, size, host, (HostOrder(), HostOrder()))
        obstacle = cannot_share() or cannot_reach(source, target)
        aside = obstacle is not None or source != target
        orders = CudaOrder(source, target, aside), CudaOrder(target, source, aside)
        if obstacle is not None:
            self._tell(f"{obstacle}; pinned host memory is used")
            return ring(slots, size, _on_host(slots * size, pinned=True), orders, target)
        there = DeviceMemory(slots * size, target), DeviceMemory(slots * size, target)
        return ring(slots, size, there, orders)

    def _tell(self, line: str) -> None:
        if line not in self._told:
            log.warning("transport=ring: %s", line)
        self._told.add(line)


def ring(
    slots: int,
    size: int,
    memories: tuple[Memory, Memory],
    orders: tuple[Order, Order],
    device: str | None = None,
) -> tuple[RingSender, RingReceiver]:
    """The two ends of a new ring.

    Args:
        slots: Number of slots.
        size: Bytes of each slot.
        memories: The memory of the slots at the producer's end, and at the consumer's.
        orders: How each end waits for the other to be done with a slot.
        device: Where the receiver copies what comes; None: it is read in place.
    """
    producer, consumer = open_pipes()
    theirs, ours = (Slots(memory, slots, size) for memory in memories)
    return (
        RingSender(producer, theirs, orders[0]),
        RingReceiver(consumer, ours, orders[1], device),
    )


def _on_host(size: int, pinned: bool) -> tuple[HostMemory, HostMemory]:
    tensor = torch.zeros(size, dtype=torch.uint8)
    tensor.share_memory_()  # type: ignore[no-untyped-call]
    return HostMemory(tensor, pinned), HostMemory(tensor, pinned)
