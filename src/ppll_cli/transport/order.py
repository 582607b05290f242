"""In which order the two ends of a ring use a slot.

A token says that a slot was filled, or that it is given back. On CPU it has been by then. On CUDA
the work that does so may only have been queued, and memory that processes share has no order of its
own. So each end has an event for each slot, which it records behind its use of the slot before the
token goes, and for which the other end's stream, never its host, waits after the token has come:

    producer     wait for `given back`, copy, record `filled`      token ->
    consumer                                                       wait for `filled`, compute,
                                                         <- token  record `given back`

One event for each slot and direction is enough. An event is recorded anew for the slot's next turn
only, and before that comes a token that the other end sends after its wait has been queued: a wait
always means the record that its token followed. On a slot's first turn there is nothing to wait
for. Each wait means what was queued before it, in whatever process, so streams cannot wait in a
circle. A handle of an event goes with the first token after it was made.

An end records only its own events, and waits only for the other end's. CUDA lets a stream wait for
an event of any device, so each end opens the other's events in the context of its own device: a
context on the neighbour's device would take hundreds of MB there.
"""

import logging
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]


class Moment:
    """What is queued on a device's current stream by now. On CPU it has been done.

    Args:
        device: The device whose current stream counts.
    """

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Have the calling thread wait, without computing, until it has been done."""
        if self._event is not None:
            self._event.synchronize()


def let_default_stream_wait(device: torch.device) -> None:
    """Have a CUDA device's default stream wait for what is queued on the current stream by now.

    A new thread records events on the default stream, whatever stream this thread uses.
    """
    if device.type == "cuda":
        current = torch.cuda.current_stream(device)
        default = torch.cuda.default_stream(device)
        if current != default:
            default.wait_stream(current)


class Order(Protocol):
    """Orders one end's use of slots behind the other's."""

    def learn(self, handle: bytes) -> None:
        """Take the other end's event for the next slot of which it has none."""
        ...

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Copy after the slot was given back; returns a handle where an event was made for it.

        Args:
            slot: Index of the slot.
            views: The tensors as they lie in the slot's memory.
            tensors: The tensors that are copied there.
        """
        ...

    def take(self, slot: int) -> None:
        """Let what comes next use the slot after it was filled."""
        ...

    def give_back(self, slot: int) -> bytes:
        """What came before was its last use; returns a handle where an event was made for it."""
        ...


class HostOrder:
    """What is done before a token goes needs no further order."""

    def learn(self, handle: bytes) -> None:
        """There are no events."""
        raise AssertionError(handle)

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Copy."""
        for name, tensor in tensors.items():
            views[name].copy_(tensor.detach())
        return b""

    def take(self, slot: int) -> None:
        """It was filled."""

    def give_back(self, slot: int) -> bytes:
        """What came before has ended."""
        return b""


class CudaOrder:
    """Orders the streams of two devices, or of two processes on one, by events.

    Args:
        device: This end's device.
        other: The other end's device.
        aside: Whether copies that this end makes leave its device. They are then made beside its
            work, on a stream of their own. On one device they would only take from that work.
    """

    def __init__(self, device: str, other: str, aside: bool) -> None:
        self._device, self._other = torch.device(device), torch.device(other)
        self._aside = aside
        self._side: torch.cuda.Stream | None = None
        self._ours: list[torch.cuda.Event] = []
        self._theirs: list[torch.cuda.Event] = []

    def learn(self, handle: bytes) -> None:
        """Open the other end's event for the next slot."""
        self._theirs.append(self._open(handle))

    def _open(self, handle: bytes) -> torch.cuda.Event:
        """Open the other end's event in the context of this end's device."""
        opened: torch.cuda.Event
        try:
            opened = torch.cuda.Event.from_ipc_handle(self._device, handle)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if self._device == self._other:
                raise
            # The driver may refuse it where the two devices have no peer access. On the event's own
            # device it can always be opened.
            if not self._theirs:
                reason = str(error).partition("\n")[0]
                log.warning("%s takes memory on %s as well: %s", self._device, self._other, reason)
            opened = torch.cuda.Event.from_ipc_handle(self._other, handle)  # type: ignore[no-untyped-call]
        return opened

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Queue the copies after the slot was given back."""
        current = torch.cuda.current_stream(self._device)
        if not self._aside:
            self._wait(slot, current)
            for name, tensor in tensors.items():
                self._copy(views[name], tensor.detach())
            return self._record(slot, current)
        # What is queued later may change the tensors, or give a slot back in which they lie, and is
        # not to wait for a copy that may itself wait for the other device. Copies of them on their
        # own device take little beside that. They have no gaps either, which would send the bytes
        # through memory that nobody waits for.
        snapshots = {name: self._snapshot(tensor.detach()) for name, tensor in tensors.items()}
        if self._side is None:
            # Before other work of this device, because the next stage waits for it.
            self._side = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            self._wait(slot, self._side)
            for name, snapshot in snapshots.items():
                self._copy(views[name], snapshot)
                self._keep(snapshot, self._side)
            return self._record(slot, self._side)

    def take(self, slot: int) -> None:
        """Let the current stream wait until it was filled."""
        self._wait(slot, torch.cuda.current_stream(self._device))

    def give_back(self, slot: int) -> bytes:
        """Record that the current stream is through with it."""
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
        """Its memory is not to be used anew before the stream is through with it."""
        tensor.record_stream(stream)
