"""The transport of the PPLL paper: a `torch.multiprocessing.Queue` for each channel.

The sender puts copies of its tensors on the queue. A thread of the queue, the feeder, moves the
copies into shared memory (on CUDA it creates IPC handles). Through a separate pipe, the receiver
tells the sender that it has released a slot. The queue itself counts messages only until they are
received.

The receiver asks the sender's process for the shared memory. If this process ended, its unread
messages would be lost. So no worker exits before the parent has seen that all workers are done.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.multiprocessing  # lets ForkingPickler share tensors
from torch import Tensor

from ppll_cli.transport.channel import Header, WireDtype
from ppll_cli.transport.devices import cannot_share
from ppll_cli.transport.memory import no_room
from ppll_cli.transport.order import let_default_stream_wait
from ppll_cli.transport.pipes import FreeSlots

if TYPE_CHECKING:
    AnyQueue = Queue[Any]
else:
    AnyQueue = Queue  # at run time the class takes no type parameters


class _Message(NamedTuple):
    header: Header
    tensors: dict[str, Tensor]


class _Lost(NamedTuple):
    reason: str  # why the feeder could not share a message


class MessageQueue(AnyQueue):
    """A queue that informs its receiver if a message could not be put into shared memory.

    Python's own queue would drop the message, and the receiver would wait for ever.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(slots, ctx=multiprocessing.get_context("forkserver"))

    def _on_queue_feeder_error(self, error: Exception, message: object) -> None:
        internals: Any = self
        # The feeder has already released the semaphore for the lost message. The receiver will
        # release it again when it gets `_Lost`, so acquire it once here.
        internals._sem.acquire(False)
        reason = f"{type(error).__name__}: {error}"
        internals._writer.send_bytes(ForkingPickler.dumps(_Lost(reason)))


class QueueSender:
    """The sending end of a channel (see `channel.Sender`)."""

    def __init__(self, queue: MessageQueue, returned: Connection, slots: int) -> None:
        self._queue, self._free = queue, FreeSlots(returned, slots)
        self.bytes_sent = 0

    def open(self) -> None:
        """Let this process exit without waiting for the queue's thread.

        This thread may hang if the process that reads the queue is dead.
        """
        self._queue.cancel_join_thread()

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a free slot and return whether there is one."""
        return self._free.wait(timeout_s, lambda _: 1)

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Put the header and copies of the tensors on the queue. Call `wait` first."""
        # Copies, because the feeder moves a tensor's memory into shared memory.
        fresh = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for device in {tensor.device for tensor in fresh.values()}:
            let_default_stream_wait(device)  # the feeder records its event on that stream
        self.bytes_sent += sum(tensor.nbytes for tensor in fresh.values())
        self._free.count -= 1
        self._queue.put_nowait(_Message(header, fresh))  # never full: a slot was free


class QueueReceiver:
    """The receiving end of a channel (see `channel.Receiver`)."""

    def __init__(self, queue: MessageQueue, returned: Connection) -> None:
        self._queue, self._returned = queue, returned
        self._next: _Message | None = None

    def open(self) -> None:
        """Do nothing: this end needs no setup."""

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for a message and return whether there is one.

        Raises:
            RuntimeError: The sender could not share the message.
        """
        if self._next is None:
            with suppress(Empty):
                came = self._queue.get(timeout=timeout_s)
                if isinstance(came, _Lost):
                    raise RuntimeError(f"the sender could not share a message: {came.reason}")
                self._next = came
        return self._next is not None

    def peek(self) -> Header:
        """Return the header of the next message. Call `wait` first."""
        assert self._next is not None
        return self._next.header

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """Return the next message."""
        assert self._next is not None
        message, self._next = self._next, None
        return message.header, message.tensors

    def release(self) -> None:
        """Tell the sender that a slot is free."""
        self._returned.send_bytes(b"")


class QueueTransport:
    """Channels that copy each tensor into new shared memory.

    `ipc` says whether CUDA workers may share the memory of their devices. If it is False, this
    transport does not connect CUDA workers.
    """

    def __init__(
        self, *, depth: int, wire_dtype: WireDtype | None = None, ipc: bool = True
    ) -> None:
        self.depth, self.wire_dtype, self.ipc = depth, wire_dtype, ipc

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """Return why processes cannot share `size` bytes; None if they can."""
        if len(devices) < 2:
            return None
        if "cpu" in devices:
            return no_room(size)
        without = "transport.ipc=false, so no CUDA memory is shared"
        return cannot_share(*devices) if self.ipc else without

    def descriptors(self, slots: int, tensors: int) -> int:
        """Return the largest number of file descriptors that one end of a channel needs."""
        # An end has both ends of the queue's pipe, one end of the pipe for slots, and a descriptor
        # for each tensor in a slot. While a message is being shared, its tensors need a second one.
        return 3 + (slots + 1) * tensors

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[QueueSender, QueueReceiver]:
        """Create a new channel, and return its two ends."""
        queue = MessageQueue(slots)
        receive_returned, send_returned = torch.multiprocessing.Pipe(duplex=False)
        return QueueSender(queue, receive_returned, slots), QueueReceiver(queue, send_returned)
