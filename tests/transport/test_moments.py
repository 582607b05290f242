"""When the threads of network channels wait for a device. Here there is no device.

`Gates` replaces the devices: the test decides when each one reaches a moment. `Wire` replaces both
groups: it holds sent tensors until the test takes them, and records all transfers.
"""

import json
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Condition, current_thread, main_thread
from typing import Any

import pytest
import torch
from torch import Tensor

from ppll_cli.transport import network
from ppll_cli.transport.groups import Group
from ppll_cli.transport.network import HEAD, LENGTH, NetworkReceiver, NetworkSender, bytes_group

WAIT_S, SHORT_S = 20.0, 0.1
SIZE = 512
OURS, HEADS, BYTES = "the worker's", "x", bytes_group("x")
"""Moments: the worker's queued work is done, or a thread's header or bytes have been moved."""


class Gates:
    """The moments that the test does not let pass."""

    def __init__(self) -> None:
        self._shut: tuple[str, ...] = ()
        self._changed = Condition()

    def shut(self, *kinds: str) -> None:
        with self._changed:
            self._shut = kinds
            self._changed.notify_all()

    def wait(self, kind: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: kind not in self._shut, WAIT_S)


class Wire:
    """One end of two groups. The test is the other end."""

    groups = {HEADS: Group((0, 1), "gloo"), BYTES: Group((0, 1), "gloo")}  # noqa: RUF012

    def __init__(self) -> None:
        self.latest = ""
        self._sent: SimpleQueue[tuple[str, Tensor]] = SimpleQueue()
        self._asked: SimpleQueue[tuple[str, int]] = SimpleQueue()
        self._answers: SimpleQueue[Tensor] = SimpleQueue()

    def ranks(self, name: str) -> tuple[int, ...]:
        return self.groups[name].ranks

    def of(self, name: str) -> str:
        return name

    def carrier(self, name: str, device: torch.device) -> torch.device:
        return device

    def send(self, tensor: Tensor, peer: int, group: str) -> None:
        assert peer == 1
        self.latest = group
        self._sent.put((group, tensor.clone()))

    def recv(self, tensor: Tensor, peer: int, group: str) -> None:
        assert peer == 0
        self.latest = group
        self._asked.put((group, len(tensor)))
        tensor.copy_(self._answers.get(timeout=WAIT_S))

    def sent(self, limit_s: float = WAIT_S) -> tuple[str, Tensor]:
        """Return the next group and tensor that are sent."""
        return self._sent.get(timeout=limit_s)

    def asked(self, limit_s: float = WAIT_S) -> tuple[str, int]:
        """Return the group and size of the next receive that is requested."""
        return self._asked.get(timeout=limit_s)

    def answer(self, content: Tensor) -> None:
        self._answers.put(content)


def head(content: Any) -> Tensor:
    text = json.dumps(content).encode()
    return torch.frombuffer(
        bytearray((f"{len(text):0{LENGTH}d}".encode() + text).ljust(HEAD)), dtype=torch.uint8
    )


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr("torch.distributed.send", wire.send)
    monkeypatch.setattr("torch.distributed.recv", wire.recv)
    return wire


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> Iterator[Gates]:
    gates = Gates()

    class Moment:
        def __init__(self, device: torch.device) -> None:
            self._kind = OURS if current_thread() is main_thread() else wire.latest

        def wait(self) -> None:
            gates.wait(self._kind)

    monkeypatch.setattr(network, "Moment", Moment)
    yield gates
    gates.shut()


def end(kind: Any, wire: Wire, device: str = "cpu") -> Any:
    """Return an open end of a channel with one slot."""
    made = kind(wire, "x", 1, SIZE, device, "schema", lambda header: header, None)
    made.open()
    return made


def test_bytes_are_sent_only_when_the_device_has_computed_them(gates: Gates, wire: Wire) -> None:
    """A slot is filled again only after its bytes have been sent."""
    sender = end(NetworkSender, wire)
    assert wire.sent()[0] == HEADS  # the schema
    gates.shut(OURS)
    for number in (1, 2):
        assert sender.wait(WAIT_S)
        sender.send(number, {"n": torch.full((128,), number, dtype=torch.int32)})
    with pytest.raises(Empty):
        wire.sent(SHORT_S)
    gates.shut(HEADS)
    for number in (1, 2):
        group, first = wire.sent()
        assert (group, len(first)) == (HEADS, HEAD)
        with pytest.raises(Empty):
            wire.sent(SHORT_S)
        gates.shut(BYTES)
        group, content = wire.sent()
        assert (group, len(content)) == (BYTES, SIZE)
        assert content.view(torch.int32).eq(number).all()
        with pytest.raises(Empty):
            wire.sent(SHORT_S)
        assert not sender.wait(0.0)
        gates.shut(HEADS)
        assert sender.wait(WAIT_S)
        sender.send(number, {})  # fills the slot that was released


def test_a_message_is_requested_only_when_a_slot_is_free(gates: Gates, wire: Wire) -> None:
    """A message counts as received only once the device has its bytes."""
    receiver = end(NetworkReceiver, wire)
    spelled = ["header", [["n", "int64", [3], [1], "int64"]]]
    assert wire.asked() == (HEADS, HEAD)
    wire.answer(head("schema"))
    for number in (1, 2):
        assert wire.asked() == (HEADS, HEAD)
        wire.answer(head(spelled))
        assert wire.asked() == (BYTES, SIZE)
        gates.shut(BYTES)
        wire.answer(torch.full((SIZE // 8,), number).view(torch.uint8))
        assert not receiver.wait(SHORT_S)
        gates.shut(OURS)
        assert receiver.wait(WAIT_S)
        header, tensors = receiver.receive()
        assert (header, tensors["n"].tolist()) == ("header", [number] * 3)
        receiver.release()
        with pytest.raises(Empty):
            wire.asked(SHORT_S)
        assert tensors["n"].tolist() == [number] * 3
        gates.shut()
    assert wire.asked() == (HEADS, HEAD)


@pytest.mark.parametrize("kind", [NetworkSender, NetworkReceiver])
@pytest.mark.parametrize("by_host", [False, True])
def test_transfers_run_on_a_stream_of_their_own(
    gates: Gates, wire: Wire, monkeypatch: pytest.MonkeyPatch, by_host: bool, kind: Any
) -> None:
    """The thread has its own stream, on the worker's device, also if gloo carries the bytes."""
    streams: SimpleQueue[tuple[bool, object]] = SimpleQueue()

    class Pinned:
        def __init__(self, tensor: Tensor, pinned: bool) -> None:
            assert pinned
            self.tensor = tensor

        def open(self) -> None:
            pass

    class Memory:
        def __init__(self, size: int, device: str) -> None:
            assert device == "cuda:1"
            self._size = size

        def make(self) -> None:
            self.tensor = torch.zeros(self._size, dtype=torch.uint8)

    def set_stream(stream: object) -> None:
        streams.put((current_thread() is main_thread(), stream))

    if by_host:
        monkeypatch.setattr(Wire, "groups", {HEADS: Group((0, 1), "gloo")})
        monkeypatch.setattr(Wire, "carrier", lambda *_: torch.device("cpu"))
    monkeypatch.setattr(network, "HostMemory", Pinned)
    monkeypatch.setattr(network, "DeviceMemory", Memory)
    monkeypatch.setattr("torch.cuda.Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr("torch.cuda.set_stream", set_stream)
    end(kind, wire, "cuda:1")
    assert (wire.sent if kind is NetworkSender else wire.asked)()[0] == HEADS
    assert streams.get(timeout=WAIT_S) == (False, "stream of cuda:1")
