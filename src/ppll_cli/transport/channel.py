"""What a channel is.

A channel has one producer and one consumer, is first in first out, and has a fixed number of slots:
a sender waits until one is free, and a received message keeps its slot until it is released. Each
message is a small header, plain data that the channel does not look into, and named tensors, which
arrive with the shapes, dtypes and strides that they were sent with.

Waiting is apart from the rest and bounded, so that a worker can tell how long it waited and look up
in between.

The ends are made in the parent and go to the workers as these start. What belongs to a device is
made there, by `open`.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Literal, Protocol

from torch import Tensor

from ppll_cli.leaves.values import ValueSpec

Header = object
WireDtype = Literal["bf16"]

ALIGNMENT = 512
"""Bytes to whose multiples the tensors of a message are aligned, as torch aligns its own (on CPU 64
would do): kernels may take another path, with other bits, for memory that is not."""


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def message_bytes(specs: Iterable[ValueSpec], samples: int) -> int:
    """How many bytes of a slot such tensors take; any message has room for a number (a norm)."""
    sizes = [aligned(samples * prod(spec.shape) * spec.dtype.itemsize) for spec in specs]
    return max(ALIGNMENT, sum(sizes))


class Sender(Protocol):
    """The producer's end.

    Attributes:
        bytes_sent: Size of all tensors sent so far.
    """

    bytes_sent: int

    def open(self) -> None:
        """Make what is needed in this process; once, in its main thread, before all else."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a free slot and return whether there is one.

        No slot is free until the receiver has opened its end.
        """
        ...

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Send a message; only after `wait` returned True.

        The tensors may be changed and freed afterwards; on CUDA by what is queued afterwards.
        """
        ...


class Receiver(Protocol):
    """The consumer's end."""

    def open(self) -> None:
        """Make what is needed in this process; once, in its main thread, before all else."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a message, and return whether there is one."""
        ...

    def peek(self) -> Header:
        """The header of the next message, which stays; only after `wait` returned True."""
        ...

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """The next message; only after `wait` returned True. On CUDA the current stream waits."""
        ...

    def release(self) -> None:
        """Give the slot of the oldest message that was received and not released back.

        On CUDA what is queued on the current stream may still read it.
        """
        ...


class Transport(Protocol):
    """Makes channels, in the parent process; their ends are handed to workers as they start.

    Attributes:
        depth: How many slots each channel has beyond those that a schedule holds.
        wire_dtype: What numbers of float32 become where they cross a network; None: nothing else.
    """

    depth: int
    wire_dtype: WireDtype | None

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """Why it cannot work here; None if it can.

        Args:
            size: Bytes of all slots of all channels.
            devices: Of all stages.
        """
        ...

    def descriptors(self, slots: int, tensors: int) -> int:
        """How many file descriptors an end of a channel takes at most.

        Args:
            slots: Of the channel.
            tensors: How many a message has at most.
        """
        ...

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[Sender, Receiver]:
        """The two ends of a new channel.

        Args:
            slots: How many messages it holds.
            size: Bytes of a message at most; each tensor counts with its size rounded up to the
                alignment.
            source: The producer's device.
            target: The consumer's device.
        """
        ...
