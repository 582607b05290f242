"""Channels of all transports: within a process, between processes, and between CUDA devices."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppll_cli.leaves import forkserver
from ppll_cli.transport import ring
from ppll_cli.transport.channel import Receiver, Sender, Transport, aligned
from ppll_cli.transport.memory import DeviceMemory
from ppll_cli.transport.order import HostOrder
from ppll_cli.transport.queue import QueueTransport
from ppll_cli.transport.ring import RingTransport
from ppll_cli.transport.ring_ends import RingReceiver, RingSender
from tests.transport.far import FarReceiver, Uploading, serve

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
        return ring.ring(slots, size, memories, (HostOrder(), HostOrder()))


class PinnedRing(RingTransport):
    """A ring for CUDA memory that cannot be shared."""

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[RingSender, RingReceiver]:
        with mock.patch.object(ring, "cannot_share", return_value="a test says so"):
            return super().channel(slots, size, source, target)


QUEUE, RING, PINNED = QueueTransport(depth=0), RingTransport(depth=0), PinnedRing(depth=0)

ON_CPU = {
    "queue": Kind(QUEUE),
    "ring": Kind(RING),
    "ring, offered": Kind(OfferedRing(depth=0)),
}
IN_ONE_PROCESS = {
    "queue, one process": Kind(QUEUE, two_processes=False),
    "ring, one process": Kind(RING, two_processes=False),
}
ON_CUDA = {
    "queue, cuda": Kind(QUEUE, "cuda:0", "cuda:0"),
    "ring, cuda": Kind(RING, "cuda:0", "cuda:0"),
    "ring, pinned": Kind(PINNED, "cuda:0", "cuda:0"),
}
ON_TWO = {
    "queue, two devices": Kind(QUEUE, "cuda:0", "cuda:1"),
    "ring, two devices": Kind(RING, "cuda:0", "cuda:1"),
    "ring, two devices, pinned": Kind(PINNED, "cuda:0", "cuda:1"),
}


def each(kinds: Mapping[str, object], devices: int = 0) -> list[Any]:
    """Return parameters of a test. They are skipped if there are fewer CUDA devices."""
    reason = f"there are {DEVICES} CUDA devices, and this takes {devices}"
    marks = pytest.mark.skipif(devices > DEVICES, reason=reason)
    return [pytest.param(kind, id=name, marks=marks) for name, kind in kinds.items()]


BETWEEN_PROCESSES = [*each(ON_CPU), *each(ON_CUDA, 1), *each(ON_TWO, 2)]

every_kind = pytest.mark.parametrize("kind", [*BETWEEN_PROCESSES, *each(IN_ONE_PROCESS)])
between_processes = pytest.mark.parametrize("kind", BETWEEN_PROCESSES)


@pytest.fixture(scope="module")
def commands() -> Iterator[Connection]:
    """Return a connection to another process. It calls methods of receivers as it is told."""
    forkserver.start()
    here, there = torch.multiprocessing.Pipe()
    process = forkserver.context().Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()
    yield here
    here.send(None)
    process.join(LIMIT_S)
    assert process.exitcode == 0


@pytest.fixture
def open_channel(kind: Kind, commands: Connection) -> Open:
    def open_channel(slots: int, largest: Tensors) -> Channel:
        sender, receiver = kind.ends(slots, largest)
        if kind.two_processes:
            receiver = FarReceiver(commands, receiver)
        receiver.open()
        sender.open()
        return sender, receiver

    return open_channel


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


@every_kind
@pytest.mark.parametrize("case", CASES)
def test_tensors_arrive_as_they_were_sent(open_channel: Open, case: str) -> None:
    sender, receiver = open_channel(1, CASES[case])
    put(sender, ("header", 1), CASES[case])
    header, tensors = take(receiver)
    assert header == ("header", 1)
    assert_same(tensors, CASES[case])


@every_kind
def test_a_shorter_last_batch_has_its_own_shapes(open_channel: Open) -> None:
    sender, receiver = open_channel(1, {"x": counting(4, 3)})
    for samples in (4, 3, 1, 4):
        put(sender, samples, {"x": counting(samples, 3)})
        header, tensors = take(receiver)
        assert header == samples
        assert_same(tensors, {"x": counting(samples, 3)})
        receiver.release()


@every_kind
def test_the_sender_may_change_its_tensors_afterwards(open_channel: Open) -> None:
    tensor = counting(3, 4)
    sender, receiver = open_channel(1, {"x": tensor})
    put(sender, None, {"x": tensor})
    tensor.fill_(-1)
    assert_same(take(receiver)[1], {"x": counting(3, 4)})


@every_kind
def test_received_tensors_require_no_gradient(open_channel: Open) -> None:
    weight = counting(3).requires_grad_()
    sender, receiver = open_channel(2, {"weight": weight})
    put(sender, None, {"weight": weight})
    put(sender, None, {"weight": weight * 2})
    assert not take(receiver)[1]["weight"].requires_grad
    assert not take(receiver)[1]["weight"].requires_grad


@every_kind
def test_peek_does_not_remove_the_message(open_channel: Open) -> None:
    sender, receiver = open_channel(2, {"x": counting(2)})
    put(sender, "first", {"x": counting(2)})
    put(sender, "second", {})
    assert receiver.wait(LIMIT_S)
    assert [receiver.peek(), receiver.peek()] == ["first", "first"]
    assert receiver.wait(0.0)
    assert take(receiver)[0] == "first"
    assert receiver.wait(LIMIT_S)
    assert receiver.peek() == "second"


@every_kind
def test_wait_returns_false_if_there_is_no_message(open_channel: Open) -> None:
    sender, receiver = open_channel(1, {})
    assert not receiver.wait(0.0)
    put(sender, None, {})
    take(receiver)
    assert not receiver.wait(0.0)


@every_kind
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_a_slot_is_free_again_once_it_is_released(open_channel: Open, slots: int) -> None:
    sender, receiver = open_channel(slots, {"x": counting(2)})
    for number in range(slots):
        put(sender, number, {"x": counting(2)})
    assert not sender.wait(0.0)
    take(receiver)
    assert not sender.wait(0.0)  # received, but not released
    receiver.release()
    assert sender.wait(LIMIT_S)
    put(sender, slots, {"x": counting(2)})
    assert not sender.wait(0.0)


@every_kind
def test_bytes_sent_counts_the_bytes_of_all_tensors(open_channel: Open) -> None:
    tensors = {"x": counting(4, 3), "label": counting(4, dtype=torch.int64)}
    sender, _ = open_channel(3, tensors)
    assert sender.bytes_sent == 0
    put(sender, None, tensors)
    put(sender, None, {})
    put(sender, None, {"x": counting(2, 3)})
    assert sender.bytes_sent == (4 * 3 * 4 + 4 * 8) + 0 + 2 * 3 * 4


@every_kind
# the fixtures have no state
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4), st.lists(st.sampled_from(["send", "receive", "release"])))
def test_a_channel_is_a_bounded_queue(open_channel: Open, slots: int, steps: list[str]) -> None:
    """The channel is compared with a model of a queue. Messages that are held keep their values."""
    sender, receiver = open_channel(slots, {"x": counting(3)})
    sent: deque[int] = deque()
    held: deque[tuple[int, Tensor]] = deque()
    for number, step in enumerate(steps):
        free = slots - len(sent) - len(held)
        if step == "send":
            assert sender.wait(0.0 if free == 0 else LIMIT_S) == (free > 0)
            if free:
                sender.send(number, {"x": torch.full((3,), float(number))})
                sent.append(number)
        elif step == "receive":
            assert receiver.wait(LIMIT_S if sent else 0.0) == bool(sent)
            if sent:
                header, tensors = receiver.receive()
                assert header == sent[0]
                held.append((sent.popleft(), tensors["x"]))
        elif held:
            receiver.release()
            held.popleft()
        for expected, tensor in held:
            assert tensor.tolist() == [expected] * 3


def echo(receiver: Receiver, sender: Sender) -> None:
    """Run the other process: send every message back until it is told to end."""
    receiver.open()
    sender.open()
    while (message := take(receiver))[0] != "end":
        put(sender, *message)
        receiver.release()


@pytest.fixture
def start_echo() -> Iterator[Callable[..., None]]:
    """Return a function that starts `echo`.

    At the end, the process must have exited with status 0.
    """
    forkserver.start()
    started: list[tuple[Any, object]] = []

    def start(receiver: Receiver, sender: Sender, *ours: Sender | Receiver) -> None:
        process = forkserver.context().Process(target=echo, args=(receiver, sender), daemon=True)
        process.start()
        for end in ours:
            end.open()
        # Our ends must exist as long as the process, which may still release the last slot.
        started.append((process, ours))

    yield start
    for process, _ in started:
        process.join(LIMIT_S)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0


@between_processes
def test_tensors_survive_the_trip_to_another_process_and_back(
    kind: Kind, start_echo: Callable[..., None]
) -> None:
    """The other process sends each message on, and releases its slot at once."""
    everything = {f"{case} {n}": t for case, tensors in CASES.items() for n, t in tensors.items()}
    sender, far_receiver = kind.ends(2, everything)
    far_sender, receiver = kind.ends(1, everything, back=True)
    start_echo(far_receiver, far_sender, sender, receiver)
    for case, tensors in [*CASES.items()] * 3:
        changed = {f"{case} {name}": tensor.clone() for name, tensor in tensors.items()}
        put(sender, case, changed)
        for tensor in changed.values():
            tensor.zero_()
        header, received = take(receiver)
        assert header == case
        assert_same(received, {f"{case} {name}": tensor for name, tensor in tensors.items()})
        receiver.release()
    put(sender, "end", {})


@between_processes
def test_a_full_channel_makes_the_sender_wait(kind: Kind, start_echo: Callable[..., None]) -> None:
    """The other process sends message 0 back, and holds 1 because its way back is full.

    So 2 waits.
    """
    sender, far_receiver = kind.ends(2, {"x": counting(3)})
    far_sender, receiver = kind.ends(1, {"x": counting(3)}, back=True)
    start_echo(far_receiver, far_sender, sender, receiver)
    for number in range(3):
        put(sender, number, {"x": torch.full((3,), float(number))})
    assert not sender.wait(0.1)
    for number in range(3):
        header, tensors = take(receiver)
        assert header == number
        assert tensors["x"].tolist() == [float(number)] * 3
        receiver.release()
    put(sender, "end", {})


@pytest.mark.parametrize("kind", [pytest.param(Kind(OfferedRing(depth=0)), id="ring, offered")])
def test_no_slot_is_free_before_the_receiver_has_opened_its_end(
    kind: Kind, commands: Connection
) -> None:
    sender, receiver = kind.ends(2, {"x": counting(3)})
    sender.open()
    assert not sender.wait(0.0)
    far = FarReceiver(commands, receiver)
    far.open()
    put(sender, None, {"x": counting(3)})
    put(sender, None, {"x": counting(3)})
    assert not sender.wait(0.0)
    assert_same(take(far)[1], {"x": counting(3)})
