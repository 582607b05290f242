"""Orders how the two ends of a ring use a slot.

A token says that a slot was filled, or that it is given back. On CPU, this has happened when the
token is sent. On CUDA, the work may still be queued, and CUDA does not order the work of two
processes on shared memory. So each end has a CUDA event per slot. It records the event after its
use of the slot and then sends the token. When the token has arrived, the stream of the other end,
never its host, waits for the event:

    sender       wait for `given back`, copy, record `filled`      token ->
    receiver                                                       wait for `filled`, compute,
                                                         <- token  record `given back`

One event per slot and direction is enough. An end records its event again only on the slot's next
turn. Before that, it has received a token that the other end sent after it had queued its wait. So
a wait always refers to the record that was made before its token was sent. On a slot's first turn
the sender has nothing to wait for. Streams only wait for work that was queued earlier, in either
process, so they cannot wait for one another in a circle. The first token after an event was made
carries the event's handle.

An end records only its own events and waits only for those of the other end. A CUDA stream can wait
for an event of any device, so each end opens the other end's events in the context of its own
device: a context on the neighbour's device would take hundreds of MB there.
"""

import logging
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]
"""Tensors by name."""


class Moment:
    """The work that is queued on a device's current stream now. On CPU it is done already.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Block the calling thread until the work is done, without using a core."""
        if self._event is not None:
            self._event.synchronize()


def let_default_stream_wait(device: torch.device) -> None:
    """Let a CUDA device's default stream wait for the work queued on the current stream.

    A new thread records events on the default stream, whatever stream this thread uses.
    """
    if device.type == "cuda":
        current = torch.cuda.current_stream(device)
        default = torch.cuda.default_stream(device)
        if current != default:
            default.wait_stream(current)


class Order(Protocol):
    """Orders one end's use of a slot after that of the other end."""

    def learn(self, handle: bytes) -> None:
        """Store the other end's event for the next slot that has none yet."""
        ...

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Copy tensors into a slot once it was given back.

        Args:
            slot: Index of the slot.
            views: Views of the slot's memory, by the tensors' names.
            tensors: The tensors to copy.

        Returns:
            The handle of the slot's event if it was made now, else empty.
        """
        ...

    def take(self, slot: int) -> None:
        """Let the work that follows wait until the slot is filled."""
        ...

    def give_back(self, slot: int) -> bytes:
        """Record that the work so far was the last use of the slot on this turn.

        Returns:
            The handle of the slot's event if it was made now, else empty.
        """
        ...


class HostOrder:
    """The order on CPU: all work is done before its token is sent, so there are no events."""

    def learn(self, handle: bytes) -> None:
        """Fail, because there are no events."""
        raise AssertionError(handle)

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Copy tensors into a slot."""
        for name, tensor in tensors.items():
            views[name].copy_(tensor.detach())
        return b""

    def take(self, slot: int) -> None:
        """Do nothing: the slot is filled."""

    def give_back(self, slot: int) -> bytes:
        """Do nothing: the work so far has ended."""
        return b""


class CudaOrder:
    """The order of the streams of two CUDA devices, or of two processes on one, by events.

    Args:
        device: This end's device.
        other: The other end's device.
        aside: Whether copies of this end leave its device. They then run on a side stream, parallel
            to the device's work. Copies inside one device would only slow that work down.
    """

    def __init__(self, device: str, other: str, aside: bool) -> None:
        self._device, self._other = torch.device(device), torch.device(other)
        self._aside = aside
        self._side: torch.cuda.Stream | None = None
        self._ours: list[torch.cuda.Event] = []
        self._theirs: list[torch.cuda.Event] = []

    def learn(self, handle: bytes) -> None:
        """Open the other end's event for the next slot that has none yet."""
        self._theirs.append(self._open(handle))

    def _open(self, handle: bytes) -> torch.cuda.Event:
        """Open the other end's event in the context of this end's device."""
        opened: torch.cuda.Event
        try:
            opened = torch.cuda.Event.from_ipc_handle(self._device, handle)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if self._device == self._other:
                raise
            # The driver may refuse this if the two devices have no peer access. The event can
            # always be opened on its own device.
            if not self._theirs:
                reason = str(error).partition("\n")[0]
                log.warning("%s takes memory on %s as well: %s", self._device, self._other, reason)
            opened = torch.cuda.Event.from_ipc_handle(self._other, handle)  # type: ignore[no-untyped-call]
        return opened

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Queue the copies of tensors into a slot, after it was given back."""
        current = torch.cuda.current_stream(self._device)
        if not self._aside:
            self._wait(slot, current)
            for name, tensor in tensors.items():
                self._copy(views[name], tensor.detach())
            return self._record(slot, current)
        # Work that is queued later may change the tensors, or give back a slot in which they lie.
        # It must not wait for a copy that may itself wait for the other device. So the tensors are
        # first copied on their own device, which is cheap. These snapshots have no gaps either:
        # a copy of a tensor with gaps would go through memory that no event covers.
        snapshots = {name: self._snapshot(tensor.detach()) for name, tensor in tensors.items()}
        if self._side is None:
            # High priority on this device, because the next stage waits for the copies.
            self._side = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            self._wait(slot, self._side)
            for name, snapshot in snapshots.items():
                self._copy(views[name], snapshot)
                self._keep(snapshot, self._side)
            return self._record(slot, self._side)

    def take(self, slot: int) -> None:
        """Let the current stream wait until the slot is filled."""
        self._wait(slot, torch.cuda.current_stream(self._device))

    def give_back(self, slot: int) -> bytes:
        """Record that the current stream has used the slot for the last time on this turn."""
        return self._record(slot, torch.cuda.current_stream(self._device))

    def _wait(self, slot: int, stream: torch.cuda.Stream) -> None:
        if slot < len(self._theirs):
            stream.wait_event(self._theirs[slot])

    def _record(self, slot: int, stream: torch.cuda.Stream) -> bytes:
        if slot < len(self._ours):
            self._ours[slot].record(stream)
            return b""
        event = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        self._ours.append(event)
        return bytes(event.ipc_handle())  # type: ignore[no-untyped-call]

    def _snapshot(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def _copy(self, view: Tensor, tensor: Tensor) -> None:
        view.copy_(tensor, non_blocking=True)

    def _keep(self, tensor: Tensor, stream: torch.cuda.Stream) -> None:
        """Keep a tensor's memory from being reused before the stream has finished with it."""
        tensor.record_stream(stream)
