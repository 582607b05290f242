"""Channels of all transports, and tensors to send through them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from ppll_cli.transport import ring
from ppll_cli.transport.channel import Receiver, Sender, Transport, aligned
from ppll_cli.transport.memory import DeviceMemory
from ppll_cli.transport.order import Order
from ppll_cli.transport.queue import QueueTransport
from ppll_cli.transport.ring import RingTransport
from ppll_cli.transport.ring_ends import RingReceiver, RingSender
from tests.transport.far import Uploading

LIMIT_S = 30.0
"""Limit for a message that must arrive. It usually arrives much earlier."""

Tensors = Mapping[str, Tensor]
Channel = tuple[Sender, Receiver]
Open = Callable[[int, Tensors], Channel]
"""Opens a channel, given its number of slots and the largest tensors that it will carry."""

DEVICES = torch.cuda.device_count()


def size_of(tensors: Tensors) -> int:
    return sum(aligned(tensor.nbytes) for tensor in tensors.values())


@dataclass(frozen=True)
class Kind:
    """A transport, the devices of both ends, and whether the ends may be in two processes."""

    transport: Transport
    source: str = "cpu"
    target: str = "cpu"
    two_processes: bool = True

    def ends(self, slots: int, largest: Tensors, back: bool = False) -> Channel:
        """Return the ends of a new channel, not opened.

        With `back`, it leads in the other direction.
        """
        source, target = (self.target, self.source) if back else (self.source, self.target)
        sender, receiver = self.transport.channel(slots, size_of(largest), source, target)
        return sender if source == "cpu" else Uploading(sender, source), receiver


class OfferedRing(RingTransport):
    """A ring on CPU whose consumer makes the memory, as on CUDA."""

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[RingSender, RingReceiver]:
        memories = DeviceMemory(slots * size, target), DeviceMemory(slots * size, target)
        return ring.ring(slots, size, memories, (Order(), Order()))


class PinnedRing(RingTransport):
    """A ring for CUDA memory that cannot be shared."""

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[Sender, Receiver]:
        with mock.patch.object(ring, "cannot_share", return_value="a test says so"):
            return super().channel(slots, size, source, target)


QUEUE, RING, PINNED = QueueTransport(depth=0), RingTransport(depth=0), PinnedRing(depth=0)
NO_IPC = RingTransport(depth=0, ipc=False)

ON_CPU = {"queue": Kind(QUEUE), "ring": Kind(RING), "ring, offered": Kind(OfferedRing(depth=0))}
IN_ONE_PROCESS = {
    "queue, one process": Kind(QUEUE, two_processes=False),
    "ring, one process": Kind(RING, two_processes=False),
}
ON_CUDA = {
    "queue, cuda": Kind(QUEUE, "cuda:0", "cuda:0"),
    "ring, cuda": Kind(RING, "cuda:0", "cuda:0"),
    "ring, pinned": Kind(PINNED, "cuda:0", "cuda:0"),
    "ring, no ipc": Kind(NO_IPC, "cuda:0", "cuda:0"),
}
ON_TWO = {
    "queue, two devices": Kind(QUEUE, "cuda:0", "cuda:1"),
    "ring, two devices": Kind(RING, "cuda:0", "cuda:1"),
    "ring, two devices, pinned": Kind(PINNED, "cuda:0", "cuda:1"),
    "ring, two devices, no ipc": Kind(NO_IPC, "cuda:0", "cuda:1"),
}


def each(kinds: Mapping[str, object], devices: int = 0) -> list[Any]:
    """Return parameters of a test. They are skipped if there are fewer CUDA devices."""
    reason = f"there are {DEVICES} CUDA devices, and this takes {devices}"
    marks = pytest.mark.skipif(devices > DEVICES, reason=reason)
    return [pytest.param(kind, id=name, marks=marks) for name, kind in kinds.items()]


BETWEEN_PROCESSES = [*each(ON_CPU), *each(ON_CUDA, 1), *each(ON_TWO, 2)]

every_kind = pytest.mark.parametrize("kind", [*BETWEEN_PROCESSES, *each(IN_ONE_PROCESS)])
between_processes = pytest.mark.parametrize("kind", BETWEEN_PROCESSES)


def counting(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


CASES: dict[str, Tensors] = {
    "nothing": {},
    "dtypes": {
        str(dtype): counting(3, 4, dtype=dtype)
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.complex64,
            torch.int64,
            torch.uint8,
            torch.bool,
        )
    },
    "shapes": {"scalar": torch.tensor(3.5), "vector": counting(5), "map": counting(2, 3, 4, 5)},
    "channels last": {"x": counting(2, 3, 4, 5).to(memory_format=torch.channels_last)},
    "transposed": {"x": counting(3, 4).t(), "tokens": counting(2, 3, 4).transpose(1, 2)},
    "large": {"x": counting(64, 64, 64)},
}


def assert_same(received: Tensors, sent: Tensors) -> None:
    assert received.keys() == sent.keys()
    for name, tensor in sent.items():
        assert received[name].dtype == tensor.dtype
        assert received[name].shape == tensor.shape
        assert received[name].stride() == tensor.stride()
        assert torch.equal(received[name].cpu(), tensor)


def put(sender: Sender, header: object, tensors: Tensors) -> None:
    assert sender.wait(LIMIT_S)
    sender.send(header, tensors)


def take(receiver: Receiver) -> tuple[object, dict[str, Tensor]]:
    assert receiver.wait(LIMIT_S)
    return receiver.receive()
