"""The interface of channels and transports.

A channel has one sender and one receiver, is first in, first out, and has a fixed number of slots.
A sender waits until a slot is free; a received message keeps its slot until the receiver releases
it. Each message has a small header, plain data that the channel does not read, and named tensors,
which arrive with the shapes, dtypes and strides with which they were sent.

Waiting is a separate method with a time limit. So a worker can measure how long it waits, and do
other things in between.

The parent makes both ends and passes them to the workers as they start. `open` then makes in the
worker whatever belongs to its process or device.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Literal, Protocol

from torch import Tensor

from ppll_cli.leaves.values import ValueSpec

Header = object
"""The header of a message: plain data that the channel does not read."""

WireDtype = Literal["bf16"]
"""The dtype to which float32 tensors can be converted while they cross a network."""

ALIGNMENT = 512
"""Alignment of a message's tensors in bytes, that of torch's own allocator on CUDA.

For memory that is less aligned, kernels may take another path and compute other bits. On CPU 64
would be enough."""


def aligned(size: int) -> int:
    """Round a size in bytes up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def message_bytes(specs: Iterable[ValueSpec], samples: int) -> int:
    """Return the bytes of a slot that tensors take, at least `ALIGNMENT`.

    Args:
        specs: Shape (without the batch dimension) and dtype of each tensor.
        samples: Size of the batch dimension.
    """
    sizes = [aligned(samples * prod(spec.shape) * spec.dtype.itemsize) for spec in specs]
    return max(ALIGNMENT, sum(sizes))


class Sender(Protocol):
    """The sending end of a channel.

    Attributes:
        bytes_sent: Size of all tensors sent so far, in bytes.
    """

    bytes_sent: int

    def open(self) -> None:
        """Set up the end in this process. The main thread calls this once, before all else."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a free slot and return whether there is one.

        There may be none until the receiver has opened its end.
        """
        ...

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Send a message; call this only after `wait` returned True.

        The caller may change and free the tensors after this call. On CUDA this holds for work
        that is queued on the device after the call.
        """
        ...


class Receiver(Protocol):
    """The receiving end of a channel."""

    def open(self) -> None:
        """Set up the end in this process. The main thread calls this once, before all else."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a message and return whether there is one."""
        ...

    def peek(self) -> Header:
        """Return the header of the next message without receiving the message.

        Call this only after `wait` returned True.
        """
        ...

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """Receive the next message; call this only after `wait` returned True.

        On CUDA the current stream waits until the tensors are complete, not the host.

        Returns:
            The header, and the tensors by name. They are valid until the slot is released.
        """
        ...

    def release(self) -> None:
        """Give back the slot of the oldest received message that still holds one.

        On CUDA, work that is already queued on the current stream may still read the slot.
        """
        ...


class Transport(Protocol):
    """Makes channels in the parent process, whose ends are then passed to the workers.

    Attributes:
        depth: Slots of each channel beyond those that the schedule needs.
        wire_dtype: The dtype to which float32 tensors are converted while they cross a network;
            None for no conversion.
    """

    depth: int
    wire_dtype: WireDtype | None

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """Return why the transport cannot work on this machine; None if it can.

        Args:
            size: Bytes of all slots of all channels.
            devices: The device of each worker.
        """
        ...

    def descriptors(self, slots: int, tensors: int) -> int:
        """Return the largest number of file descriptors that an end of a channel takes.

        Args:
            slots: Number of slots of the channel.
            tensors: Largest number of tensors of a message.
        """
        ...

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[Sender, Receiver]:
        """Make the two ends of a new channel.

        Args:
            slots: Number of slots.
            size: Largest size of a message in bytes, where the size of each tensor is rounded up
                to `ALIGNMENT`.
            source: The sender's device.
            target: The receiver's device.
        """
        ...
