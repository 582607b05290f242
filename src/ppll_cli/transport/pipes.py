"""The two pipes of a channel: one sends messages, the other reports slots that become free.

A channel has only one sender and one receiver, so the pipes need no lock.
"""

import select
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch.multiprocessing


class PipeEnds(NamedTuple):
    """The connections of one end of a channel: for messages, and for slots that become free."""

    messages: Connection
    returned: Connection


def open_pipes() -> tuple[PipeEnds, PipeEnds]:
    """Open the two pipes of a channel, and return the connections of sender and receiver."""
    receive_messages, send_messages = torch.multiprocessing.Pipe(duplex=False)
    receive_returned, send_returned = torch.multiprocessing.Pipe(duplex=False)
    return PipeEnds(send_messages, receive_returned), PipeEnds(receive_messages, send_returned)


class Inlet:
    """The receiving end of a pipe, with a fast way to test whether the pipe has data."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._poll: select.poll | None = None  # made in the worker, because it cannot be pickled

    def ready(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for data in the pipe, and return whether it has data."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.connection.fileno(), select.POLLIN)
        return bool(self._poll.poll(1000 * timeout_s))


class FreeSlots:
    """The sender's count of free slots of a channel.

    The sender subtracts one from `count` for each message that it sends. `wait` adds the slots that
    the receiver has freed.
    """

    def __init__(self, returned: Connection, count: int) -> None:
        self._returned, self.count = Inlet(returned), count

    def wait(self, timeout_s: float, take: Callable[[bytes], int]) -> bool:
        """Wait up to `timeout_s` seconds for a free slot, and return whether there is one.

        `take` is called with each message that the receiver sends back; it returns the number of
        slots that this message frees.
        """
        while self._returned.ready(timeout_s if self.count == 0 else 0):
            self.count += take(self._returned.connection.recv_bytes())
        return self.count > 0
