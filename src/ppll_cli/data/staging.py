"""How a batch gets from host memory to its device while the host goes on.

On CUDA a copy out of ordinary memory waits until the device has done all that was queued before it,
and so a worker that made such a copy in each batch would never be ahead of its device.
"""

import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for that device.

    On CUDA it is copied to pinned memory first, which the device reads by itself. Nothing has to be
    kept or awaited: torch keeps a list of its pinned memory, records an event behind a non-blocking
    copy when that memory is let go, and hands the memory out again only after the event. In the
    steady state no memory is allocated and none is freed.

    Args:
        tensor: In host memory. If it is pinned already it is not copied again, and must not be
            changed afterwards.
        device: Where the tensor is wanted. On its own device it is returned as it is.

    Returns:
        The tensor there, in order with all that is queued on the calling thread's current stream.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class SideStream:
    """A stream of its own for a thread that makes tensors for another thread.

    Copies and kernels of the one thread then run beside those of the other, and only their results
    are waited for, by the other thread's stream and not by its host. On CPU there are no streams:
    what a thread returns has been computed.

    Args:
        device: Where the tensors are made. The stream begins behind what is queued there by now,
            such as a data set that is still on its way.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def enter(self) -> None:
        """Have the calling thread queue all its work there; device and stream are per thread."""
        if self._stream is not None:
            torch.cuda.set_device(self._device)
            torch.cuda.set_stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """An event behind what is queued there by now."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def hand_over(self, tensors: dict[str, Tensor], made: torch.cuda.Event | None) -> None:
        """Let the calling thread's stream use tensors that were made there.

        Args:
            tensors: By name. Their memory belongs to the side stream, which would use it again as
                soon as they are freed here; so the allocator is told that this stream reads them.
            made: The event behind the work that makes them.
        """
        if made is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_event(made)
        for tensor in tensors.values():
            if tensor.is_cuda:  # a user's own data set may leave some on the host
                tensor.record_stream(current)
