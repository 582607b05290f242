"""The interface of channels and transports.

A channel has one sender and one receiver. Messages arrive in the order in which they were sent. A
message has a small header of plain data, and named tensors. The channel keeps their shapes, dtypes
and strides, but it removes gaps and overlaps between the elements of a tensor.

A channel has a fixed number of slots, and each message takes one slot. The sender waits until a
slot is free. A received message keeps its slot until the receiver releases it.

The parent creates both ends of a channel and passes them to the workers at their start. In the
worker, `open` then creates everything that belongs to the worker's process or device.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Literal, Protocol

from torch import Tensor

from ppll_cli.leaves.values import ValueSpec

Header = object
"""The header of a message: plain data that the channel does not interpret."""

WireDtype = Literal["bf16"]
"""The dtype to which float32 tensors can be converted for a network transfer."""

ALIGNMENT = 512
"""Alignment of a message's tensors in bytes. torch's CUDA allocator has the same alignment. With a
smaller alignment, kernels may use another code path and compute different bits."""


def aligned(size: int) -> int:
    """Round a size in bytes up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def message_bytes(specs: Iterable[ValueSpec], samples: int) -> int:
    """Return the bytes that a message of `samples` samples needs in a slot.

    `specs` has the dtype of each tensor, and its shape without the batch dimension.
    """
    sizes = [aligned(samples * prod(spec.shape) * spec.dtype.itemsize) for spec in specs]
    return max(ALIGNMENT, sum(sizes))


class Sender(Protocol):
    """The sending end of a channel. `bytes_sent` is the size of all tensors sent so far."""

    bytes_sent: int

    def open(self) -> None:
        """Set up this end in this process. The main thread calls this before any other method."""

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a free slot and return whether there is one.

        In some channels, no slot is free before the receiver has opened its end.

        Raises:
            RuntimeError: The connection to another machine was lost.
        """

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Send a message; call this only after `wait` returned True.

        Afterwards the caller may change or free the tensors, or (on CUDA) queue work that does so.

        Raises:
            ValueError: The tensors do not fit into a slot. Not every channel checks this.
        """


class Receiver(Protocol):
    """The receiving end of a channel."""

    def open(self) -> None:
        """Set up this end in this process. The main thread calls this before any other method."""

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a message and return whether there is one.

        Raises:
            RuntimeError: The connection was lost, or the sender could not share the message.
            SchemaError: The sender on another machine sends other tensors than expected here.
        """

    def peek(self) -> Header:
        """Return the next message's header; the message stays in the channel. Call `wait` first."""

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """Receive the next message; call this only after `wait` returned True.

        On CUDA the current stream waits until the tensors are complete; the host does not wait.

        Returns:
            The header, and the tensors by name. The tensors are valid until `release`.
        """

    def release(self) -> None:
        """Free the slot of the oldest received message that is not released yet.

        On CUDA, work that is already queued on the current stream may still read the slot.
        """


class Transport(Protocol):
    """Creates channels. The parent process uses it, and passes the channels' ends to the workers.

    Attributes:
        depth: Number of slots of each channel in addition to those that the schedule needs.
        wire_dtype: The dtype of float32 tensors in a network transfer; None for no conversion.
    """

    depth: int
    wire_dtype: WireDtype | None

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """Return why the transport cannot work on this machine; None if it can.

        `size` is the total size of all slots of all channels, in bytes. `devices` has the device of
        each worker on this machine.
        """

    def descriptors(self, slots: int, tensors: int) -> int:
        """Return the largest number of file descriptors that one end of a channel needs.

        `slots` is the number of slots, and `tensors` the largest number of tensors in a message.
        """

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[Sender, Receiver]:
        """Create a new channel, and return its two ends.

        Args:
            slots: Number of slots.
            size: Largest size of a message in bytes, as `message_bytes` computes it.
            source: Device of the sender.
            target: Device of the receiver.

        Raises:
            OSError: Shared memory is full.
        """
