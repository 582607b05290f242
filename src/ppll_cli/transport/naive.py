"""The plain way: a fresh tensor in shared memory for each message.

`torch.multiprocessing` moves a tensor that is sent into shared memory (on CUDA it makes an IPC
handle and orders the streams), and the receiver maps it.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ppll_cli.transport.channel import Header, WireDtype
from ppll_cli.transport.devices import cannot_share
from ppll_cli.transport.pipes import Ends, FreeSlots, open_pipes


class NaiveSender:
    """The producer's end; see `channel.Sender`."""

    def __init__(self, ends: Ends, slots: int) -> None:
        self._messages, self._free = ends.messages, FreeSlots(ends.returned, slots)
        self.bytes_sent = 0

    def open(self) -> None:
        """There is nothing to make."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until a slot is free; whether one is."""
        return self._free.wait(timeout_s, lambda _: 1)

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Send copies of the tensors."""
        # A copy, because sending moves a tensor's storage into memory that the receiver shares.
        fresh = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._free.count -= 1
        # Apart, so that a receiver that looks at the header does not map the tensors yet.
        self._messages.send(header)
        self._messages.send(fresh)
        self.bytes_sent += sum(tensor.nbytes for tensor in fresh.values())


class NaiveReceiver:
    """The consumer's end; see `channel.Receiver`."""

    def __init__(self, ends: Ends) -> None:
        self._messages, self._returned = ends
        self._header: Header | None = None

    def open(self) -> None:
        """There is nothing to make."""

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
        self._returned.send_bytes(b"")


class NaiveTransport:
    """Channels that copy each tensor into new shared memory.

    Args:
        depth: How many slots each channel has beyond those that a schedule holds.
        wire_dtype: What numbers of float32 become where they cross a network.
    """

    def __init__(self, *, depth: int, wire_dtype: WireDtype | None = None) -> None:
        self.depth, self.wire_dtype = depth, wire_dtype

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """CUDA memory that other processes cannot be given stands in its way."""
        on_cuda = len(devices) > 1 and any(device != "cpu" for device in devices)
        return cannot_share() if on_cuda else None

    def descriptors(self, slots: int, tensors: int) -> int:
        """Two pipes' ends, and one for each tensor that is sent or held."""
        return 2 + slots * tensors

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[NaiveSender, NaiveReceiver]:
        """The two ends of a new channel."""
        producer, consumer = open_pipes()
        return NaiveSender(producer, slots), NaiveReceiver(consumer)
