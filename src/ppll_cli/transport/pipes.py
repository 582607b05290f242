"""The two pipes of a channel: messages go one way, and slots are given back the other.

One producer and one consumer need no lock, so that the ends of two pipes are all that they share
besides memory.
"""

import select
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch.multiprocessing


class Ends(NamedTuple):
    """What one end of a channel has of its pipes."""

    messages: Connection
    returned: Connection


def open_pipes() -> tuple[Ends, Ends]:
    """New pipes: the producer's ends, and the consumer's."""
    receive_messages, send_messages = torch.multiprocessing.Pipe(duplex=False)
    receive_returned, send_returned = torch.multiprocessing.Pipe(duplex=False)
    return Ends(send_messages, receive_returned), Ends(receive_messages, send_returned)


class Inlet:
    """A pipe's end of which one can see quickly whether something can be read."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._poll: select.poll | None = None  # made where it is used: it cannot be sent

    def ready(self, timeout_s: float) -> bool:
        """Wait until something can be read, and return whether it can."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.connection.fileno(), select.POLLIN)
        return bool(self._poll.poll(1000 * timeout_s))


class FreeSlots:
    """The slots that a producer may fill: one less with each message, more as words come back.

    Args:
        returned: Where the consumer's words come.
        count: How many are free at the start.
    """

    def __init__(self, returned: Connection, count: int) -> None:
        self._returned, self.count = Inlet(returned), count

    def wait(self, timeout_s: float, take: Callable[[bytes], int]) -> bool:
        """Wait until a slot is free, and return whether there is one.

        Args:
            timeout_s: How long to wait if no slot is free.
            take: Called with each word that has come back; says how many slots it frees.
        """
        while self._returned.ready(timeout_s if self.count == 0 else 0):
            self.count += take(self._returned.connection.recv_bytes())
        return self.count > 0
