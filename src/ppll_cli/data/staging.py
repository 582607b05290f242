"""Copies batches from host memory to their device without blocking the host.

On CUDA a copy from pageable memory blocks the host until the device has finished all work queued
before the copy. A worker that made such a copy for each batch could never queue work in advance.
"""

import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for that device.

    On CUDA the tensor is first copied to pinned memory, which torch's caching allocator reuses only
    after the copy to the device has finished. The copy to the device is queued on the calling
    thread's current stream. A tensor that is already pinned is copied directly, so it must not be
    changed before this copy has finished. A tensor on the device is returned unchanged.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class SideStream:
    """A CUDA stream for a thread that makes tensors which another thread uses.

    The work of the two threads overlaps on the device. The side stream begins only after all work
    that was queued on the current stream before this object was created, such as the copy of a data
    set. On CPU all methods do nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def enter(self) -> None:
        """Make the side stream, and its device, current in the calling thread."""
        if self._stream is not None:
            torch.cuda.set_device(self._device)
            torch.cuda.set_stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """Return an event that completes after all work queued so far on the side stream.

        Return None on CPU.
        """
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def hand_over(self, tensors: dict[str, Tensor], made: torch.cuda.Event | None) -> None:
        """Let the calling thread's current stream use tensors that were made on the side stream.

        The side stream does not reuse the tensors' memory while the current stream still reads it.
        `made` is the result of `mark`, called after the tensors were made.
        """
        if made is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_event(made)
        for tensor in tensors.values():
            if tensor.is_cuda:  # a user's data set may leave some tensors on the host
                tensor.record_stream(current)
