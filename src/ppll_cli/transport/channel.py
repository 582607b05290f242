"""What a channel is.

A channel has one producer and one consumer, is first in first out, and has a fixed number of slots:
a sender waits until one is free, and a received message keeps its slot until it is released. Each
message is a small header, plain data that the channel does not look into, and named tensors, which
arrive with the shapes, dtypes and strides that they were sent with.

Waiting is apart from the rest and bounded, so that a worker can tell how long it waited and look up
in between.
"""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Protocol

from torch import Tensor

from ppll_cli.values import ValueSpec

Header = object

ALIGNMENT = 64
"""Bytes to whose multiples the tensors of a message are aligned, as torch aligns its own: kernels
may take another path, with other bits, for memory that is not."""


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

    def wait(self, timeout_s: float) -> bool:
        """Wait until a slot is free; whether one is."""
        ...

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Send a message; only after `wait` returned True. The tensors may change afterwards."""
        ...


class Receiver(Protocol):
    """The consumer's end."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message is there; whether one is."""
        ...

    def peek(self) -> Header:
        """The header of the next message, which stays; only after `wait` returned True."""
        ...

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """The next message; only after `wait` returned True."""
        ...

    def release(self) -> None:
        """Give the slot of the oldest message that was received and not released back."""
        ...


class Transport(Protocol):
    """Makes channels, in the parent process; their ends are handed to workers as they start.

    Attributes:
        depth: How many slots each channel has beyond those that a schedule holds.
    """

    depth: int

    def obstacle(self, size: int, devices: Iterable[str]) -> str | None:
        """Why it cannot work here; None if it can.

        Args:
            size: Bytes of all slots of all channels.
            devices: Of all stages.
        """
        ...

    def channel(self, slots: int, size: int) -> tuple[Sender, Receiver]:
        """The two ends of a new channel, whose messages have `size` bytes at most.

        Each tensor counts with its size rounded up to 64 bytes.
        """
        ...
