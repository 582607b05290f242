"""The fast transport: a ring of slots in shared memory, allocated once and used for every message.

A sender copies its tensors into a slot and sends a token through a pipe. The receiver computes with
the tensors in the slot, without a copy. A token contains the message's header and the number of a
layout. A layout describes the names, dtypes, shapes and strides of the tensors; the first token
with a layout also contains the layout itself. Each end uses the slots one after another, and the
receiver frees them in the order of the messages, so a token need not name its slot.

The devices of the two workers decide in which memory the slots are (`memory`), and how one end of
the channel waits until the other end has finished with a slot (`order`). If a worker is on CPU,
slots are in shared host memory, and an end waits only for tokens. Between CUDA workers, slots are
on the receiver's device, and an end also waits for CUDA events. If the processes cannot share the
device's memory, or the sender's device cannot access it, slots are in pinned host memory instead,
and the receiver copies the tensors to its device.
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
"""The number of the layout, the header, the handle of the slot's CUDA event when the slot is used
for the first time (else empty), and the layout when it is used for the first time (else None)."""


class RingSender:
    """The sending end; see `channel.Sender`."""

    def __init__(self, ends: Ends, slots: Slots, order: Order) -> None:
        self._messages, self._slots, self._order = ends.messages, slots, order
        self._free = FreeSlots(ends.returned, 0 if slots.memory.tensor is None else slots.count)
        self._layouts: dict[Layout, tuple[int, int]] = {}  # number, and tensors' bytes
        self.bytes_sent = 0

    def open(self) -> None:
        """Open the memory, unless the receiver will offer it."""
        self._slots.memory.open()

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a free slot and return whether there is one."""
        return self._free.wait(timeout_s, self._take)

    def _take(self, word: bytes) -> int:
        """Handle a message from the receiver: the offer of its memory, or a freed slot.

        Returns:
            The number of slots that become free.
        """
        if self._slots.memory.tensor is None:
            self._slots.memory.accept(word)
            return self._slots.count
        if word:
            self._order.learn(word)
        return 1

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors into the next slot and send the token.

        Raises:
            ValueError: The tensors do not fit into a slot.
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
        # Not `Connection.send`: it uses a slower pickler, which can also share tensors.
        self._messages.send_bytes(pickle.dumps(token, pickle.HIGHEST_PROTOCOL))


class RingReceiver:
    """The receiving end; see `channel.Receiver`.

    Received tensors are views of the slot, or copies on `device` if it is not None.
    """

    def __init__(self, ends: Ends, slots: Slots, order: Order, device: str | None) -> None:
        self._messages, self._returned = Inlet(ends.messages), ends.returned
        self._slots, self._order, self._device = slots, order, device
        self._layouts: list[Layout] = []
        self._token: _Token | None = None
        self._oldest = 0

    def open(self) -> None:
        """Open the memory, and offer it to the sender if the sender does not have it yet."""
        offer = self._slots.memory.offer()
        if offer:
            self._returned.send_bytes(offer)

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a message and return whether there is one."""
        return self._token is not None or self._messages.ready(timeout_s)

    def peek(self) -> Header:
        """Return the header of the next message."""
        return self._peek()[1]

    def _peek(self) -> _Token:
        if self._token is None:
            # Unpickling is safe here: a worker of the same run wrote the bytes.
            token: Any = pickle.loads(self._messages.connection.recv_bytes())
            self._token = token
        return self._token

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """Return the next message. Its tensors are valid until `release` frees the slot."""
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
        """Free the oldest slot in use."""
        slot, self._oldest = self._oldest, (self._oldest + 1) % self._slots.count
        self._returned.send_bytes(self._order.give_back(slot))


class RingTransport:
    """Channels whose slots are allocated once and used for every message.

    Args:
        depth: Number of slots of each channel in addition to those that the schedule needs.
        wire_dtype: The dtype to which float32 tensors are converted for a network transfer; None
            for no conversion.
    """

    def __init__(self, *, depth: int, wire_dtype: WireDtype | None = None) -> None:
        self.depth, self.wire_dtype = depth, wire_dtype
        self._told: set[str] = set()

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """Return a reason if channels of `size` bytes cannot be created, otherwise None."""
        pairs = combinations(dict.fromkeys(devices), 2)
        on_cuda = "cpu" not in devices
        if on_cuda and not cannot_share() and not any(cannot_reach(*pair) for pair in pairs):
            return None
        return no_room(size)

    def descriptors(self, slots: int, tensors: int) -> int:
        """Return 3: one for the shared memory, and one for an end of each of the two pipes."""
        return 3

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[RingSender, RingReceiver]:
        """Create a new channel, and return its two ends."""
        size = max(ALIGNMENT, aligned(size))
        if "cpu" in (source, target):
            host = _on_host(slots * size, pinned=False)
            return ring(slots, size, host, (HostOrder(), HostOrder()))
        obstacle = cannot_share() or cannot_reach(source, target)
        aside = obstacle is not None or source != target
        orders = CudaOrder(source, target, aside), CudaOrder(target, source, aside)
        if obstacle is not None:
            self._tell(f"{obstacle}; using pinned host memory instead")
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
    """Create a new ring, and return its two ends.

    Args:
        slots: Number of slots.
        size: Size of each slot in bytes.
        memories: The memory of the slots, as the sender sees it and as the receiver sees it.
        orders: The `Order` of the sender, and the `Order` of the receiver.
        device: The device to which the receiver copies tensors; None if it reads them in the slot.
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
