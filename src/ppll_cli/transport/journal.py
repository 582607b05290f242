"""The transport of a run whose stages can be restarted: channels keep messages for a restart.

If a worker dies, a new process takes its place. It loads the worker's latest snapshot, and receives
the messages after this snapshot again. So a channel keeps each message until its receiver has taken
a snapshot after the message::

    freed                  received                sent
      |    kept for replay    |   waiting to be read  |   free
    --+-----------------------+-----------------------+-----------> messages, slot = number % slots

`sent` counts the messages that were sent completely. `freed` counts the messages that the receiver
never reads again.

The new process also computes messages that the dead process had sent. It does not send them again.
It checks that they equal the messages in the channel, byte for byte.

All state of a channel is in memory that the parent shares with both ends, so that it outlives the
workers.
"""

import ctypes
import os
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from ppll_cli.errors import ReplayError
from ppll_cli.transport.channel import ALIGNMENT, Header, aligned
from ppll_cli.transport.memory import HostMemory, no_room, shared_zeros
from ppll_cli.transport.order import Moment
from ppll_cli.transport.pipes import Inlet, open_pipes
from ppll_cli.transport.ring import RingTransport
from ppll_cli.transport.slots import Layout, Slots, layout_of

LARGEST_HEAD = 1 << 16
"""Largest size in bytes of a head: the header and the layout of one message."""

_SMALLEST_HEAD, _HEAD_PER_TENSOR = 4096, 160  # in bytes

_DRAINED = 1 << 16  # largest number of bytes to read from a pipe in one call


class _Counters(ctypes.Structure):
    _fields_ = (("sent", ctypes.c_int64), ("freed", ctypes.c_int64))
    sent: int
    freed: int


class _WakeUp:
    # The pipes contain no messages, so nothing is lost if a worker reads a byte and then dies.
    def __init__(self, wakes: Connection, woken: Connection) -> None:
        self._wakes, self._woken = wakes, Inlet(woken)

    def open(self) -> None:
        os.set_blocking(self._wakes.fileno(), False)
        self.wake()  # an earlier process of this worker may have died before its call of `wake`

    def wake(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full, so the other end will wake up anyway
            os.write(self._wakes.fileno(), b"\0")

    def wait(self, timeout_s: float) -> None:
        if self._woken.ready(timeout_s):
            os.read(self._woken.connection.fileno(), _DRAINED)


class _End:
    def __init__(self, slots: Slots, head: int, wakeup: _WakeUp, device: str) -> None:
        self._slots, self._head_bytes = slots, head
        self._wakeup, self._device = wakeup, torch.device(device)
        self.position = 0  # number of the next message, counted since the run's start

    def open(self) -> None:
        self._slots.memory.open()
        self._wakeup.open()

    @property
    def _counters(self) -> _Counters:
        return _Counters.from_address(self._address(0))

    def _address(self, number: int) -> int:
        # The memory has the slots, then the counters (number 0), then a head for each slot. The
        # counters and each head take `_head_bytes`.
        memory, slots = self._slots.memory.tensor, self._slots
        assert memory is not None
        return memory.data_ptr() + slots.count * slots.size + number * self._head_bytes

    def _head(self, message: int) -> "ctypes.Array[ctypes.c_char]":
        place = self._address(1 + message % self._slots.count)
        return (ctypes.c_char * self._head_bytes).from_address(place)

    def _write_head(self, message: int, header: Header, layout: Layout) -> None:
        head = pickle.dumps((header, layout), pickle.HIGHEST_PROTOCOL)
        if len(head) > self._head_bytes:
            raise ValueError(
                f"names and shapes of the {len(layout)} tensors of a message take {len(head)} "
                f"bytes, and recover=stage has room for {self._head_bytes}: use recover=off"
            )
        ctypes.memmove(self._head(message), head, len(head))

    def _read_head(self, message: int) -> tuple[Header, Layout]:
        # Unpickling is safe here: a worker of the same run wrote the bytes. It stops at the end of
        # the pickle, and ignores what an earlier, longer head has left behind it.
        found: Any = pickle.loads(self._head(message))
        header, layout = found
        return header, layout

    def _views(self, message: int, layout: Layout) -> dict[str, Tensor]:
        return self._slots.at(message % self._slots.count, layout)


class JournalSender(_End):
    """The sending end; see `channel.Sender`.

    `position` is the number of the next message. After a restart, it may be less than the number of
    sent messages, because the earlier process of this worker has sent more.
    """

    bytes_sent = 0

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds until `send` may be called; return whether it may.

        It may be called if a slot is free, or if the next message was sent before a restart.
        """
        if not self._may_send():
            self._wakeup.wait(timeout_s)
        return self._may_send()

    def _may_send(self) -> bool:
        counters = self._counters
        used = counters.sent - counters.freed
        return self.position < counters.sent or used < self._slots.count

    def already_sent(self) -> Header | None:
        """Return the header of the next message if it was sent before a restart; else None."""
        if self.position == self._counters.sent:
            return None
        return self._read_head(self.position)[0]

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Send a message. If it was sent before a restart, only check that it is the same.

        Raises:
            ReplayError: The message differs from the message that was sent before the restart.
            ValueError: The tensors do not fit into a slot, or the header with the names and shapes
                of the tensors does not fit into the head.
        """
        layout = layout_of(tensors)
        if self.position < self._counters.sent:
            self._check(header, layout, tensors)
        else:
            for name, view in self._views(self.position, layout).items():
                view.copy_(tensors[name].detach(), non_blocking=True)
            self._write_head(self.position, header, layout)
            Moment(self._device).wait()  # the receiver's device does not wait for our queued copies
            # The message counts as sent only after its last byte is written. This relies on the
            # memory order of x86: another process sees stores in the order in which they were made.
            self._counters.sent += 1
            self._wakeup.wake()
        self.position += 1
        self.bytes_sent += sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())

    def _check(self, header: Header, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        assert self._counters.sent - self.position <= self._slots.count
        before = self._read_head(self.position)
        if before != (header, layout):
            raise ReplayError(f"the tensors {[each.name for each in layout]}", str(before[0]))
        for name, view in self._views(self.position, layout).items():
            if not torch.equal(_bytes(view), _bytes(tensors[name].detach().cpu())):
                raise ReplayError(f"the tensor {name!r}", str(before[0]))


class JournalReceiver(_End):
    """The receiving end; see `channel.Receiver`.

    Attributes:
        keeps: Whether the slots of released messages stay in use until `free` is called. A stage
            that takes snapshots sets this. If it is False, `release` frees the slot.
    """

    keeps = False
    _released = 0
    _copied: Moment  # when the copies of the latest received message are complete

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a message and return whether there is one."""
        if self.position == self._counters.sent:
            self._wakeup.wait(timeout_s)
        return self.position < self._counters.sent

    def peek(self) -> Header:
        """Return the header of the next message without receiving the message."""
        return self._read_head(self.position)[0]

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """Return the next message."""
        header, layout = self._read_head(self.position)
        views = self._views(self.position, layout)
        self.position += 1
        # Copy, because a network may change its inputs in place: a restart needs them unchanged.
        copies = {name: self._copy(view) for name, view in views.items()}
        self._copied = Moment(self._device)
        return header, copies

    def _copy(self, view: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return view.clone()
        return view.to(self._device, non_blocking=True)

    def release(self) -> None:
        """Release the oldest message in use, and free its slot unless `keeps` is True."""
        self._released += 1
        if not self.keeps:
            self._copied.wait()  # the sender must not fill the slot while it is being copied
            self.free()

    @property
    def kept(self) -> int:
        """Number of released messages whose slots are kept for a restart."""
        return self._released - self._counters.freed

    def go_back(self, position: int) -> None:
        """Continue with message number `position`, after a restart from a snapshot.

        Earlier messages are freed: the receiver's snapshot contains what it computed from them.
        """
        self.position = self._released = position
        self.free()

    def free(self) -> None:
        """Free the slots of all released messages, so that the sender can fill them.

        Call this only when the copies of the messages' tensors are complete. If `keeps` is True, a
        snapshot must have been taken after the messages were released.
        """
        self._counters.freed = self._released
        self._wakeup.wake()


class JournalTransport(RingTransport):
    """Creates channels whose messages can be received again after a restart."""

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """Return why shared memory has no room for `size` bytes; None if it has room.

        `size` is the total size of all slots of all channels.
        """
        return no_room(size)  # slots are in shared memory of the host, also between CUDA devices

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[JournalSender, JournalReceiver]:
        """Create a channel, and return its two ends; see `channel.Transport.channel`."""
        size = max(ALIGNMENT, aligned(size))
        head = head_bytes(size)
        tensor = shared_zeros(slots * size + (1 + slots) * head)
        sides = []
        for device in (source, target):
            memory = HostMemory(tensor, pinned=torch.device(device).type == "cuda")
            sides.append(Slots(memory, slots, size))
        producer, consumer = open_pipes()
        return (
            JournalSender(sides[0], head, _WakeUp(*producer), source),
            JournalReceiver(sides[1], head, _WakeUp(*reversed(consumer)), target),
        )


def head_bytes(size: int) -> int:
    """Return the bytes to reserve for the header and layout of a message of `size` bytes."""
    # Each tensor takes at least `ALIGNMENT` bytes, so the size limits the number of tensors.
    return min(LARGEST_HEAD, _SMALLEST_HEAD + size // ALIGNMENT * _HEAD_PER_TENSOR)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
