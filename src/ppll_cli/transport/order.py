"""Makes sure that the two ends of a ring use a slot one after the other.

An end of a ring fills or frees a slot, and then sends a token to the other end. On CUDA, its work
on the slot may still be queued at that time. Then the other end has to wait for this work.
"""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ppll_cli.transport.devices import cuda_ipc

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]


class Moment:
    """Remembers which work is queued on a device's current stream, so that `wait` can wait for it.

    Work that is queued later does not count.
    """

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Block the calling thread until this work is done, without using CPU time meanwhile."""
        if self._event is not None:
            self._event.synchronize()


def let_default_stream_wait(device: torch.device) -> None:
    """Make a CUDA device's default stream wait for the work queued on the current stream.

    This is needed before a CUDA tensor is put into a queue of `multiprocessing`, because the thread
    that pickles the tensor records its event on the default stream.
    """
    if device.type == "cuda":
        current = torch.cuda.current_stream(device)
        default = torch.cuda.default_stream(device)
        if current != default:
            default.wait_stream(current)


class Order:
    """Makes sure that one end of a ring has finished with a slot before the other end uses it.

    The sender calls `fill`. The receiver calls `take`, computes, and calls `give_back`. The bytes
    that `fill` and `give_back` return are sent to the other end, which passes them to `learn` if
    they are not empty.

    This class is for rings with an end on the CPU. For two CUDA workers there is `CudaOrder`, or
    `HostOrder` if their processes cannot share CUDA events.
    """

    def learn(self, handle: bytes) -> None:
        """Open the other end's CUDA event, first for slot 0, then for slot 1, and so on."""
        raise AssertionError(handle)

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Copy tensors into the views of a free slot. Return bytes for `learn`."""
        for name, tensor in tensors.items():
            views[name].copy_(tensor.detach())
        return b""

    def take(self, slot: int) -> None:
        """Make work that the receiver queues after this call wait until the slot is filled."""

    def give_back(self, slot: int) -> bytes:
        """Free the slot when the device has done all work that is queued before this call.

        Return bytes that the sender's `learn` needs.
        """
        return b""


class HostOrder(Order):
    """Orders the work of two CUDA workers without CUDA IPC. The slots are in host memory.

    The process of an end waits until its device has finished with a slot. Only then it sends the
    token to the other end.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Copy tensors into the views of a free slot, and wait until the copies are complete."""
        for name, tensor in tensors.items():
            views[name].copy_(tensor.detach(), non_blocking=True)
        Moment(self._device).wait()
        return b""

    def give_back(self, slot: int) -> bytes:
        """Wait until this end's device has finished with the slot."""
        Moment(self._device).wait()
        return b""


class CudaOrder(Order):
    """Orders the two ends' work by CUDA events, on two devices or in two processes on one device.

    A stream of one end waits for events of the other end; the host never waits.

    Args:
        device: This end's device.
        other: The other end's device.
        aside: Whether copies run on a side stream, parallel to computation. Set it if they leave
            the device; inside one device, a parallel copy would only slow down computation.
    """

    # CUDA does not order the work of two processes on shared memory. Therefore each end records an
    # event before it sends the token:
    #
    #   sender       wait for `given back`, copy, record `filled`      token ->
    #   receiver                                                       wait for `filled`, compute,
    #                                                        <- token  record `given back`
    #
    # One event per slot and direction is enough: an end records the event again only after a token
    # from the other end, which sends this token after it has queued its wait for the event. Streams
    # only wait for work that was queued earlier, in either process, so they cannot deadlock. The
    # first token after an event was created contains the event's handle.
    #
    # Each end opens the other end's events in the context of its own device. So a receiver needs no
    # context on the sender's device, which would take hundreds of MB there. (A sender has a context
    # on the receiver's device anyway, because torch needs it to open the receiver's memory.)

    def __init__(self, device: str, other: str, aside: bool) -> None:
        self._device, self._other = torch.device(device), torch.device(other)
        self._aside = aside
        self._side: torch.cuda.Stream | None = None
        self._ours: list[torch.cuda.Event] = []
        self._theirs: list[torch.cuda.Event] = []

    def learn(self, handle: bytes) -> None:
        """Open the other end's event by its handle. The calls are for slot 0, slot 1, and so on."""
        with cuda_ipc():
            self._theirs.append(self._open(handle))

    def _open(self, handle: bytes) -> torch.cuda.Event:
        opened: torch.cuda.Event
        try:
            opened = torch.cuda.Event.from_ipc_handle(self._device, handle)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if self._device == self._other:
                raise
            # The driver may refuse to open the event on this end's device if the two devices have
            # no peer access. The event can always be opened on the other end's device.
            if not self._theirs:
                reason = str(error).partition("\n")[0]
                log.warning("%s also uses memory of %s: %s", self._device, self._other, reason)
            opened = torch.cuda.Event.from_ipc_handle(self._other, handle)  # type: ignore[no-untyped-call]
        return opened

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        """Queue copies of tensors into a slot; the device starts them when the slot is free."""
        current = torch.cuda.current_stream(self._device)
        if not self._aside:
            self._wait(slot, current)
            for name, tensor in tensors.items():
                self._copy(views[name], tensor.detach())
            return self._record(slot, current)
        # Work that is queued later may change the tensors, or give back the slot they are in. Such
        # work must not wait for a copy that itself may wait for the other device. So first clone
        # the tensors on their own device, which is cheap. The clones also have no gaps. To copy a
        # tensor with gaps to another device, torch would use memory that no event protects.
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
        """Make the current stream wait until the slot is filled; the host does not wait."""
        self._wait(slot, torch.cuda.current_stream(self._device))

    def give_back(self, slot: int) -> bytes:
        """Free the slot after the work on the current stream; the host does not wait."""
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
        with cuda_ipc():
            return bytes(event.ipc_handle())  # type: ignore[no-untyped-call]

    def _snapshot(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def _copy(self, view: Tensor, tensor: Tensor) -> None:
        view.copy_(tensor, non_blocking=True)

    def _keep(self, tensor: Tensor, stream: torch.cuda.Stream) -> None:
        tensor.record_stream(stream)
