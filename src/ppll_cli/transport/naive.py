"""The plain way: a fresh tensor in shared memory for each message.

`torch.multiprocessing` moves a tensor that is sent into shared memory (on CUDA it makes an IPC
handle), and the receiver maps it. A second pipe carries the slots that are given back. One producer
and one consumer need no lock, so the ends of two pipes are all that there is.
"""

from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection

import torch.multiprocessing
from torch import Tensor

from ppll_cli.transport.channel import Header


class NaiveSender:
    """The producer's end; see `channel.Sender`."""

    def __init__(self, messages: Connection, returned: Connection, slots: int) -> None:
        self._messages, self._returned, self._free = messages, returned, slots
        self.bytes_sent = 0

    def wait(self, timeout_s: float) -> bool:
        """Wait until a slot is free; whether one is."""
        while self._returned.poll(timeout_s if self._free == 0 else 0):
            self._returned.recv_bytes()
            self._free += 1
        return self._free > 0

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Send copies of the tensors."""
        # A copy, because sending moves a tensor's storage into memory that the receiver shares.
        fresh = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._free -= 1
        # Apart, so that a receiver that looks at the header does not map the tensors yet.
        self._messages.send(header)
        self._messages.send(fresh)
        self.bytes_sent += sum(tensor.nbytes for tensor in fresh.values())


class NaiveReceiver:
    """The consumer's end; see `channel.Receiver`."""

    def __init__(self, messages: Connection, returned: Connection) -> None:
        self._messages, self._returned = messages, returned
        self._header: Header | None = None

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message is there; whether one is."""
        return self._header is not None or self._messages.poll(timeout_s)

    def peek(self) -> Header:
        """The header of the next message."""
        if self._header is None:
            self._header = self._messages.recv()
        return self._header

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """The next message."""
        header, self._header = self.peek(), None
        return header, self._messages.recv()

    def release(self) -> None:
        """Give a slot back; the memory goes with the last reference to the tensors."""
        self._returned.send_bytes(b"\0")


class NaiveTransport:
    """Channels that copy each tensor into new shared memory.

    Args:
        depth: How many slots each channel has beyond those that a schedule holds.
    """

    def __init__(self, *, depth: int) -> None:
        self.depth = depth

    def obstacle(self, size: int, devices: Iterable[str]) -> str | None:
        """Nothing is in its way."""
        return None

    def channel(self, slots: int, size: int) -> tuple[NaiveSender, NaiveReceiver]:
        """The two ends of a new channel."""
        receive_messages, send_messages = torch.multiprocessing.Pipe(duplex=False)
        receive_returned, send_returned = torch.multiprocessing.Pipe(duplex=False)
        return (
            NaiveSender(send_messages, receive_returned, slots),
            NaiveReceiver(receive_messages, send_returned),
        )
