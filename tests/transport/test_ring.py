"""Properties that only rings have: the slots themselves hold the messages."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppll_cli.leaves import cuda
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.transport import memory, ring
from ppll_cli.transport.channel import ALIGNMENT, message_bytes
from ppll_cli.transport.memory import HostMemory
from ppll_cli.transport.order import HostOrder, Order, Tensors
from ppll_cli.transport.ring import RingTransport
from ppll_cli.transport.ring_ends import RingReceiver, RingSender
from tests.conftest import shared_memory

WAIT_S = 10.0


def test_a_receiver_reads_in_place() -> None:
    """There is no copy: received tensors are in the ring's memory, at aligned addresses."""
    sender, receiver = RingTransport(depth=0).channel(2, 2 * ALIGNMENT)
    seen = []
    for number in range(4):
        assert sender.wait(WAIT_S)
        sender.send(number, {"x": torch.full((3,), float(number)), "y": torch.ones(5, 2)})
        assert receiver.wait(WAIT_S)
        _, tensors = receiver.receive()
        assert tensors["x"].data_ptr() % ALIGNMENT == tensors["y"].data_ptr() % ALIGNMENT == 0
        seen.append((tensors["x"].data_ptr(), tensors["y"].data_ptr()))
        receiver.release()
    assert seen[0] == seen[2] != seen[1] == seen[3]
    assert seen[1][0] - seen[0][0] == 2 * ALIGNMENT


def test_a_message_that_does_not_fit_is_refused() -> None:
    sender, _ = RingTransport(depth=0).channel(1, 1000)
    assert sender.wait(WAIT_S)
    message = r"^tensors \{'x': \[300\]\} take 1536 bytes, but a slot has 1024$"
    with pytest.raises(ValueError, match=message):
        sender.send(None, {"x": torch.zeros(300)})
    sender.send(None, {"x": torch.zeros(256)})


def test_every_slot_has_room_for_a_norm() -> None:
    """Activations' channels also carry norms and marks, so their slots need room for these."""
    sender, receiver = RingTransport(depth=0).channel(1, message_bytes([], 8))
    sender.send(None, {"norms": torch.tensor(2.0, dtype=torch.float64)})
    assert receiver.wait(WAIT_S)
    assert receiver.receive()[1]["norms"].item() == 2.0


def test_message_bytes_rounds_each_tensor_up() -> None:
    specs = [
        ValueSpec((3,), torch.float32),
        ValueSpec((), torch.int64),
        ValueSpec((9, 9), torch.bool),
    ]
    assert message_bytes(specs, samples=8) == 512 + 512 + 1024


class Recording(Order):
    """An order that records its calls, and what the other end can see at this time.

    Args:
        name: Name of this end.
        seen: The list of records.
    """

    def __init__(self, name: str, seen: list[str]) -> None:
        self._name, self._seen = name, seen
        self._made: set[int] = set()
        self.visible: Callable[[], bool] = lambda: False

    def learn(self, handle: bytes) -> None:
        self._seen.append(f"{self._name} learns {handle.decode()}")

    def fill(self, slot: int, views: Tensors, tensors: Tensors) -> bytes:
        assert not self.visible(), "the token went before the slot was filled"
        super().fill(slot, views, tensors)
        self._seen.append(f"{self._name} fills {slot}")
        return self._handle(slot)

    def take(self, slot: int) -> None:
        self._seen.append(f"{self._name} takes {slot}")

    def give_back(self, slot: int) -> bytes:
        assert not self.visible(), "the slot was given back before that was in order"
        self._seen.append(f"{self._name} gives back {slot}")
        return self._handle(slot)

    def _handle(self, slot: int) -> bytes:
        first = slot not in self._made
        self._made.add(slot)
        return f"{self._name} {slot}".encode() if first else b""


@pytest.fixture
def recorded() -> tuple[RingSender, RingReceiver, list[str]]:
    """Return a ring of two slots, and the list to which its orders write."""
    seen: list[str] = []
    orders = Recording("producer", seen), Recording("consumer", seen)
    memory = HostMemory(torch.zeros(2 * ALIGNMENT, dtype=torch.uint8), pinned=False)
    sender, receiver = ring.ring(2, ALIGNMENT, (memory, memory), orders)
    orders[0].visible = lambda: receiver.wait(0.0)
    return sender, receiver, seen


def pass_on(sender: RingSender, receiver: RingReceiver, tensor: Tensor) -> Tensor:
    assert sender.wait(WAIT_S)
    sender.send(None, {"x": tensor})
    assert receiver.wait(WAIT_S)
    return receiver.receive()[1]["x"]


def test_both_ends_order_their_use_of_each_slot_in_turn(
    recorded: tuple[RingSender, RingReceiver, list[str]],
) -> None:
    """Each end gets the other's event for a slot with the first token after the event was made."""
    sender, receiver, seen = recorded
    for number in range(3):
        received = pass_on(sender, receiver, torch.full((3,), float(number)))
        assert received.tolist() == [number] * 3
        receiver.release()
    first = ["fills 0", "learns producer 0", "takes 0", "gives back 0"]
    second = ["learns consumer 0", "fills 1", "learns producer 1", "takes 1", "gives back 1"]
    third = ["learns consumer 1", "fills 0", "takes 0", "gives back 0"]
    names = {"fills": "producer", "takes": "consumer", "gives": "consumer"}

    def who(line: str) -> str:
        if line.startswith("learns"):
            return "consumer" if "producer" in line else "producer"
        return names[line.split()[0]]

    assert seen == [f"{who(line)} {line}" for line in [*first, *second, *third]]


def test_slots_are_released_in_the_order_of_their_messages(
    recorded: tuple[RingSender, RingReceiver, list[str]],
) -> None:
    sender, receiver, seen = recorded
    for number in range(2):
        pass_on(sender, receiver, torch.full((3,), float(number)))
    assert not sender.wait(0.0)
    seen.clear()
    receiver.release()
    receiver.release()
    assert seen == ["consumer gives back 0", "consumer gives back 1"]


def test_too_little_shared_memory_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = RingTransport(depth=2)
    shared_memory(monkeypatch, 100 << 20)
    assert transport.obstacle(80 << 20, ["cpu", "cpu"]) is None
    full = "its slots take 99 MiB, but /dev/shm has room for 90 MiB"
    assert transport.obstacle(99 << 20, ["cpu"]) == full
    monkeypatch.undo()
    monkeypatch.setattr(memory, "SHARED_MEMORY", Path("/not/there"))
    assert transport.obstacle(99 << 40, ["cpu"]) is None


def test_shared_memory_that_has_filled_up_since_is_an_error_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = tmp_path / "torch_12_345_0"
    left.touch()  # as torch does
    said = f"unable to allocate shared memory(shm) for file </{left.name}>: No space left (28)"

    def full(_: torch.Tensor) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(memory, "SHARED_MEMORY", tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        RingTransport(depth=2).channel(2, 64)
    assert (caught.value.errno, caught.value.filename) == (28, str(left))
    assert not left.exists()


def test_on_cuda_only_pinned_host_memory_needs_room(monkeypatch: pytest.MonkeyPatch) -> None:
    transport, devices = RingTransport(depth=2), ["cuda:0", "cuda:1", "cuda:0"]
    shared_memory(monkeypatch, 100 << 20)
    monkeypatch.setattr(ring, "cannot_share", lambda *_: None)
    monkeypatch.setattr(ring, "cannot_reach", lambda one, other: None)
    assert transport.obstacle(99 << 20, devices) is None
    full = "its slots take 99 MiB, but /dev/shm has room for 90 MiB"
    monkeypatch.setattr(ring, "cannot_reach", lambda one, other: "no way")
    assert transport.obstacle(99 << 20, devices) == full
    assert transport.obstacle(99 << 20, ["cuda:0", "cuda:0"]) is None
    monkeypatch.setattr(ring, "cannot_share", lambda *_: "not shared")
    assert transport.obstacle(99 << 20, ["cuda:0", "cuda:0"]) == full


def test_the_warning_about_host_memory_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No device is used here, because only workers open the ends."""
    monkeypatch.setattr(ring, "cannot_share", lambda *_: None)
    monkeypatch.setattr(ring, "cannot_reach", lambda one, other: "there is no way")
    transport = RingTransport(depth=1)
    with caplog.at_level(logging.WARNING):
        for source, target in (("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")):
            sender, _receiver = transport.channel(2, 100, source, target)
            assert sender.wait(0.0)  # its memory exists already
    assert caplog.messages == ["transport=ring: there is no way; using pinned host memory instead"]


@pytest.mark.parametrize("ipc", [False, True])
def test_without_ipc_hosts_wait_and_slots_are_in_host_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ipc: bool
) -> None:
    """Either the user says that it is forbidden, or the driver says that it is not supported."""
    monkeypatch.setattr(cuda, "supports_ipc", lambda _: not ipc)
    transport = RingTransport(depth=1, ipc=ipc)
    shared_memory(monkeypatch, 1 << 20)
    assert transport.obstacle(5 << 20, ["cuda:0", "cuda:0"]) is not None  # it needs room
    with caplog.at_level(logging.WARNING):
        ends: tuple[Any, Any] = transport.channel(2, 100, "cuda:0", "cuda:0")
    sender, receiver = ends
    assert sender.wait(0.0)  # its memory exists already
    assert isinstance(sender._order, HostOrder)
    assert isinstance(receiver._order, HostOrder)
    why = "cuda:0 does not support CUDA IPC, so CUDA memory cannot be shared"
    why = why if ipc else "transport.ipc=false"
    assert caplog.messages == [f"transport=ring: {why}; using pinned host memory instead"]


def test_the_parent_allocates_no_device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "cannot_share", lambda *_: None)
    sender, _receiver = RingTransport(depth=1).channel(2, 100, "cuda:0", "cuda:0")
    assert not sender.wait(0.0)
