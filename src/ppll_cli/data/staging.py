"""Copies batches from host memory to their device without blocking the host.

On CUDA a copy from pageable memory blocks the host until the device has finished all work queued
before the copy. A worker that made such a copy for each batch could never queue work in advance.
"""

import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for that device.

    On CUDA the copy is queued on the calling thread's current stream. A tensor in pinned memory
    must not be changed before this copy has finished. A tensor on the device is returned unchanged.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # torch's caching allocator reuses the pinned memory only when the copy to the device has ended.
    return tensor.pin_memory().to(device, non_blocking=True)


class SideStream:
    """A CUDA stream for a thread that makes tensors which another thread uses.

    The work of the two threads overlaps on the device. On CPU all methods do nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # Work that is already queued, such as the copy of a data set, must be done first.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def enter(self) -> None:
        """Make the side stream, and its device, current in the calling thread."""
        if self._stream is not None:
            torch.cuda.set_device(self._device)
            torch.cuda.set_stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """Record an event behind all work queued so far on the side stream, and return it.

        Return None on CPU.
        """
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def hand_over(self, tensors: dict[str, Tensor], made: torch.cuda.Event | None) -> None:
        """Let the calling thread's current stream use tensors that the side stream has made.

        `made` is the event that `mark` returned after the tensors were made.
        """
        if made is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_event(made)
        for tensor in tensors.values():
            if tensor.is_cuda:  # a user's data set may leave some tensors on the host
                # Otherwise the memory could be given to a new tensor of the side stream while the
                # current stream still reads the old one.
                tensor.record_stream(current)
