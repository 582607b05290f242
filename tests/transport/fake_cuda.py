"""Replaces the CUDA runtime, so that the order of streams can be tested without a device."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ppll_cli.transport.memory import HostMemory
from ppll_cli.transport.order import CudaOrder
from ppll_cli.transport.ring import ring
from ppll_cli.transport.ring_ends import RingReceiver, RingSender

WAIT_S = 10.0
SIZE = 512


class Stream:
    """A queue of work that is not done. Each item returns whether it could be done now."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.queue: deque[Callable[[], bool]] = deque()

    def put(self, action: Callable[[], object]) -> None:
        self.queue.append(lambda: (action(), True)[1])

    def wait_event(self, event: "Event") -> None:
        record = event.records
        self.queue.append(lambda: event.done >= record)

    def wait_stream(self, other: "Stream") -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)

    def go_on(self) -> bool:
        """Do the next item if possible, and return whether it was done."""
        if self.queue and self.queue[0]():
            self.queue.popleft()
            return True
        return False


class Event:
    """Counts its records, and how many of them are done."""

    opened: dict[bytes, "Event"] = {}  # noqa: RUF012 - what all processes share
    contexts: list[torch.device] = []  # noqa: RUF012 - where handles were opened
    refused: tuple[torch.device, ...] = ()
    device: torch.device | None = None

    def __init__(self, interprocess: bool = False, blocking: bool = False) -> None:
        self.records = self.done = 0
        self._interprocess, self._blocking = interprocess, blocking

    def record(self, stream: Stream) -> None:
        assert self.device in (None, stream.device), "CUDA refuses a stream of another device"
        self._stream, self.device = stream, stream.device
        self.records += 1
        record = self.records
        stream.put(lambda: setattr(self, "done", record))

    def synchronize(self) -> None:
        assert self._blocking, "a core would be busy with waiting"
        while self.done < self.records:
            assert self._stream.go_on(), "it waits for ever"

    def ipc_handle(self) -> bytes:
        assert self._interprocess
        handle = str(id(self)).encode()
        assert handle not in self.opened, "a handle is made once"
        self.opened[handle] = self
        return handle

    @classmethod
    def from_ipc_handle(cls, device: torch.device, handle: bytes) -> "Event":
        if device in cls.refused:
            raise RuntimeError("peer access is not supported between these two devices\nand so on")
        cls.contexts.append(device)
        return cls.opened[handle]


class Cuda:
    """Devices by name. Each has a current stream."""

    def __init__(self) -> None:
        self.current: dict[torch.device, Stream] = {}
        self.others: list[Stream] = []
        self.used: set[torch.device] = set()
        self._inside: list[Stream] = []

    def current_stream(self, device: torch.device) -> Stream:
        self.used.add(device)
        return self._inside[-1] if self._inside else self.default_stream(device)

    def default_stream(self, device: torch.device) -> Stream:
        return self.current.setdefault(device, Stream(device))

    def make_stream(self, device: torch.device, priority: int) -> Stream:
        self.used.add(device)
        self.others.append(Stream(device))
        return self.others[-1]

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self._inside.append(stream)
        yield
        self._inside.pop()

    @property
    def streams(self) -> list[Stream]:
        return [*self.current.values(), *self.others]


class Order(CudaOrder):
    """Queues the operations on tensors."""

    def __init__(self, cuda: Cuda, device: str, other: str, aside: bool) -> None:
        super().__init__(device, other, aside)
        self.cuda, self.on = cuda, torch.device(device)
        self.kept: list[tuple[Tensor, object]] = []

    def _snapshot(self, tensor: Tensor) -> Tensor:
        snapshot = torch.full_like(tensor, -1)  # the memory was used before
        self._copy(snapshot, tensor)
        return snapshot

    def _copy(self, view: Tensor, tensor: Tensor) -> None:
        self.cuda.current_stream(self.on).put(lambda: view.copy_(tensor))

    def _keep(self, tensor: Tensor, stream: object) -> None:
        self.kept.append((tensor, stream))


def make_ring(
    cuda: Cuda, slots: int, source: str, target: str, aside: bool
) -> tuple[RingSender, RingReceiver, Order, Order]:
    """Return both ends of a ring, and their orders. The memory is in this process, on CPU."""
    memory = HostMemory(torch.zeros(slots * SIZE, dtype=torch.uint8), pinned=False)
    producer = Order(cuda, source, target, aside)
    consumer = Order(cuda, target, source, aside)
    sender, receiver = ring(slots, SIZE, (memory, memory), (producer, consumer))
    return sender, receiver, producer, consumer


class Program:
    """Stages, each on a device and with its own host. A ring connects each stage to the next.

    The first stage sends 1, 2, 3 and so on. Each later stage adds 10 times the received value to
    its sum, sends the value on, and releases the slot. Each host runs ahead of its device. After
    each call, the host changes all memory that it may change.
    """

    def __init__(self, cuda: Cuda, devices: list[str], slots: list[int], aside: bool) -> None:
        self.cuda, self.devices = cuda, [torch.device(device) for device in devices]
        pairs = zip(devices, devices[1:], slots, strict=False)
        self.rings = [make_ring(cuda, n, one, other, aside) for one, other, n in pairs]
        self.sums = [torch.zeros(()) for _ in devices]
        self.sent = 0
        self.received = [0] * len(devices)
        self.held: list[Tensor | None] = [None] * len(devices)

    def step(self, stage: int) -> None:
        """Let the host of a stage do its next operation that needs no waiting."""
        stream = self.cuda.current_stream(self.devices[stage])
        last = stage == len(self.devices) - 1
        room = last or self.rings[stage][0].wait(0.0)
        if stage == 0:
            if room:
                self._begin(stream)
            return
        receiver, held = self.rings[stage - 1][1], self.held[stage]
        if held is None:
            if receiver.wait(0.0):
                self.held[stage] = receiver.receive()[1]["x"]
                self.received[stage] += 1
        elif room:
            total = self.sums[stage]
            stream.put(lambda: total.add_(10 * held))
            if not last:
                self.rings[stage][0].send(None, {"x": held})
            receiver.release()
            self.held[stage] = None

    def _begin(self, stream: Stream) -> None:
        self.sent += 1
        tensor, value = torch.full((), -1.0), float(self.sent)
        stream.put(lambda: tensor.fill_(value))
        self.rings[0][0].send(None, {"x": tensor})
        stream.put(lambda: tensor.fill_(-1.0))

    def finish(self) -> None:
        """Let streams and hosts do all that is still possible, in turn."""
        for _ in range(4 * self.sent + 4):
            while any(stream.go_on() for stream in self.cuda.streams):
                pass
            for stage in range(1, len(self.devices)):
                self.step(stage)
        assert not any(stream.queue for stream in self.cuda.streams), "streams wait in a circle"
