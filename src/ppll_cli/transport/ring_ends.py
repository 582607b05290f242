"""The two ends of a ring: a channel whose slots are in shared memory and are used in turn.

The sender copies tensors into a slot, and sends a token (a short message) through a pipe. The
receiver usually computes with the tensors in the slot, without a copy.
"""

import pickle
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ppll_cli.transport.channel import Header
from ppll_cli.transport.order import Order
from ppll_cli.transport.pipes import FreeSlots, Inlet, PipeEnds
from ppll_cli.transport.slots import Layout, Slots, layout_of

# A token does not name its slot, because both ends use the slots in the same order.
_Token = tuple[Header, int, Layout | None, bytes]
"""The header; the number of the layout; the layout itself, only in the first message with this
layout (else None); the handle of the slot's CUDA event, only in the slot's first message (else
empty)."""


class RingSender:
    """The sending end; see `channel.Sender`."""

    def __init__(self, ends: PipeEnds, slots: Slots, order: Order) -> None:
        self._messages, self._slots, self._order = ends.messages, slots, order
        self._free = FreeSlots(ends.returned, 0 if slots.memory.tensor is None else slots.count)
        self._numbers: dict[Layout, int] = {}
        self.bytes_sent = 0

    def open(self) -> None:
        """Open host memory. Memory on a device is opened when the receiver's handle arrives."""
        self._slots.memory.open()

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a free slot and return whether there is one."""
        return self._free.wait(timeout_s, self._take)

    def _take(self, answer: bytes) -> int:
        if self._slots.memory.tensor is None:  # on a device: `answer` has the memory's handle
            self._slots.memory.accept(answer)
            return self._slots.count
        if answer:
            self._order.learn(answer)
        return 1

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Fill the next slot and send the token.

        Raises:
            ValueError: The tensors do not fit into a slot.
        """
        layout = layout_of(tensors)
        slot, views = self._slots.next(layout)
        handle = self._order.fill(slot, views, tensors)
        self.bytes_sent += sum(view.nbytes for view in views.values())
        self._free.count -= 1
        new = layout not in self._numbers
        number = self._numbers.setdefault(layout, len(self._numbers))
        token: _Token = (header, number, layout if new else None, handle)
        # Not `Connection.send`: it uses a slower pickler, which can also share tensors.
        self._messages.send_bytes(pickle.dumps(token, pickle.HIGHEST_PROTOCOL))


class RingReceiver:
    """The receiving end; see `channel.Receiver`. If `device` is given, tensors are copied to it."""

    def __init__(self, ends: PipeEnds, slots: Slots, order: Order, device: str | None) -> None:
        self._messages, self._returned = Inlet(ends.messages), ends.returned
        self._slots, self._order, self._device = slots, order, device
        self._layouts: list[Layout] = []
        self._token: _Token | None = None
        self._oldest = 0

    def open(self) -> None:
        """Open the memory. If it is on a device, send the sender a handle to open it."""
        offer = self._slots.memory.offer()
        if offer:
            self._returned.send_bytes(offer)

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a message and return whether there is one."""
        return self._token is not None or self._messages.ready(timeout_s)

    def peek(self) -> Header:
        """Return the header of the next message."""
        return self._peek()[0]

    def _peek(self) -> _Token:
        if self._token is None:
            # Unpickling is safe here: a worker of the same run wrote the bytes.
            token: Any = pickle.loads(self._messages.connection.recv_bytes())
            self._token = token
        return self._token

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """Return the next message. Its tensors are valid until `release` frees the slot."""
        (header, number, layout, handle), self._token = self._peek(), None
        if layout is not None:
            self._layouts.append(layout)
        if handle:
            self._order.learn(handle)
        slot, views = self._slots.next(self._layouts[number])
        self._order.take(slot)
        if self._device is None:
            return header, {name: view.detach() for name, view in views.items()}
        device = self._device
        return header, {name: view.to(device, non_blocking=True) for name, view in views.items()}

    def release(self) -> None:
        """Free the oldest slot in use."""
        slot, self._oldest = self._oldest, (self._oldest + 1) % self._slots.count
        self._returned.send_bytes(self._order.give_back(slot))
