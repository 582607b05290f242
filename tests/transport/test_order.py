"""How CUDA streams are ordered, tested without a device.

`Cuda` replaces the runtime. Work that is queued on a stream is done later, when the test lets the
stream continue. Waiting for an event means waiting for its last record. The real code runs on top
of it; only its operations on tensors are queued too.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppll_cli.transport.memory import HostMemory
from ppll_cli.transport.order import CudaOrder, Moment, let_default_stream_wait
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


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Cuda]:
    """Return a function that replaces the runtime by a new one."""

    def new() -> Cuda:
        cuda = Cuda()
        Event.opened.clear()
        Event.contexts.clear()
        monkeypatch.setattr(Event, "refused", ())
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", cuda.make_stream)
        monkeypatch.setattr(torch.cuda, "current_stream", cuda.current_stream)
        monkeypatch.setattr(torch.cuda, "default_stream", cuda.default_stream)
        monkeypatch.setattr(torch.cuda, "stream", cuda.stream)
        return cuda

    return new


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


@pytest.mark.parametrize("aside", [False, True])
@settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the fixture has no state
@given(data=st.data())
def test_every_value_arrives_in_any_order_of_hosts_and_streams(
    patched: Callable[[], Cuda], aside: bool, data: st.DataObject
) -> None:
    """The numbers of slots, and the order in which hosts and streams continue, are arbitrary."""
    cuda = patched()
    slots = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=2), "slots")
    program = Program(cuda, ["cuda:0", "cuda:1", "cuda:2"], slots, aside)
    for turn in data.draw(st.lists(st.integers(0, 7), min_size=20, max_size=80), "turns"):
        if turn < 3:
            program.step(turn)
        elif turn - 3 < len(cuda.streams):
            while cuda.streams[turn - 3].go_on():
                pass
    program.finish()
    expected = 10.0 * sum(range(1, program.sent + 1))
    assert [float(total) for total in program.sums[1:]] == [expected, expected]


def test_no_host_waits_for_a_device(patched: Callable[[], Cuda]) -> None:
    """Both ends queue two messages through one slot before any device does its work."""
    cuda = patched()
    program = Program(cuda, ["cuda:0", "cuda:1"], [1], aside=True)
    for _ in range(2):
        program.step(0)
        program.step(1)
        program.step(1)
    assert program.sent == program.received[1] == 2
    assert float(program.sums[1]) == 0
    program.finish()
    assert float(program.sums[1]) == 30


def test_streams_get_only_the_necessary_waits_and_records(patched: Callable[[], Cuda]) -> None:
    """For the first message, no end waits for an event of the other. Each handle is sent once."""
    cuda = patched()
    sender, receiver, producer, consumer = make_ring(cuda, 1, "cuda:0", "cuda:1", aside=True)
    lengths = []
    for _ in range(3):
        assert sender.wait(WAIT_S)
        sender.send(None, {"x": torch.ones(3)})
        assert receiver.wait(WAIT_S)
        receiver.receive()
        receiver.release()
        ours, theirs = cuda.current.values()
        (side,) = cuda.others
        lengths.append((len(ours.queue), len(side.queue), len(theirs.queue)))
        for stream in (ours, side, theirs):
            while stream.go_on():
                pass
    # On the producer's stream: a snapshot, and an event for its side stream. On the side stream: a
    # wait for this event, a copy, a record, and from the second message on a wait for the slot. On
    # the consumer's stream: a wait and a record.
    assert lengths == [(2, 3, 2), (2, 4, 2), (2, 4, 2)]
    assert len(Event.opened) == 2
    assert [stream for _, stream in producer.kept] == [side] * 3
    assert not consumer.kept


@pytest.mark.parametrize("aside", [False, True])
def test_each_end_uses_only_its_own_device(patched: Callable[[], Cuda], aside: bool) -> None:
    """A context on the neighbour's device would take hundreds of MB. Events need none there."""
    cuda = patched()
    sender, receiver, _, _ = make_ring(cuda, 2, "cuda:0", "cuda:1", aside)

    def used() -> set[torch.device]:
        """Return the devices on which streams and handles were used since the last call."""
        devices = cuda.used | {*Event.contexts}
        cuda.used.clear()
        Event.contexts.clear()
        return devices

    opened = 0
    for _ in range(4):
        assert sender.wait(WAIT_S)
        sender.send(None, {"x": torch.ones(3)})
        opened += len(Event.contexts)
        assert used() == {torch.device("cuda:0")}
        assert receiver.wait(WAIT_S)
        receiver.receive()
        opened += len(Event.contexts)
        receiver.release()
        assert used() == {torch.device("cuda:1")}
    assert opened == len(Event.opened) == 4  # two events for each end


def test_events_that_need_peer_access_are_opened_where_they_were_made(
    patched: Callable[[], Cuda],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The driver may refuse to open them elsewhere. One warning names the cost."""
    patched()
    here, there = torch.device("cuda:0"), torch.device("cuda:1")
    monkeypatch.setattr(Event, "refused", (here,))
    Event.opened[b"1"] = Event.opened[b"2"] = Event(interprocess=True)
    order = CudaOrder("cuda:0", "cuda:1", aside=True)
    order.learn(b"1")
    order.learn(b"2")
    assert Event.contexts == [there, there]
    assert caplog.messages == [
        "cuda:0 takes memory on cuda:1 as well: "
        "peer access is not supported between these two devices"
    ]
    with pytest.raises(RuntimeError, match="peer access"):
        CudaOrder("cuda:0", "cuda:0", aside=False).learn(b"1")


def test_the_default_stream_waits_for_work_on_the_current_stream(
    patched: Callable[[], Cuda],
) -> None:
    cuda = patched()
    device = torch.device("cuda:1")
    default, other = cuda.default_stream(device), cuda.make_stream(device, 0)
    let_default_stream_wait(device)
    assert not default.queue  # this is the current stream
    other.put(lambda: None)
    with cuda.stream(other):
        let_default_stream_wait(device)
    assert not default.go_on()
    while other.go_on():
        pass
    assert default.go_on()
    let_default_stream_wait(torch.device("cpu"))


def test_copies_inside_a_device_use_the_current_stream(patched: Callable[[], Cuda]) -> None:
    cuda = patched()
    sender, receiver, producer, _ = make_ring(cuda, 1, "cuda:0", "cuda:0", aside=False)
    assert sender.wait(WAIT_S)
    sender.send(None, {"x": torch.ones(3)})
    assert not cuda.others
    assert not producer.kept
    assert [len(stream.queue) for stream in cuda.current.values()] == [2]
    assert receiver.wait(WAIT_S)


def test_a_moment_waits_only_for_work_queued_before_it(patched: Callable[[], Cuda]) -> None:
    cuda = patched()
    device, done = torch.device("cuda:1"), list[str]()
    stream = cuda.current_stream(device)
    stream.put(lambda: done.append("before"))
    moment = Moment(device)
    stream.put(lambda: done.append("after"))
    assert done == []
    moment.wait()
    assert done == ["before"]
    Moment(torch.device("cpu")).wait()
    assert done == ["before"]
