"""What only the ring does: messages lie in the slots themselves."""

import pytest
import torch

from ppll_cli.transport import ring
from ppll_cli.transport.channel import ALIGNMENT, message_bytes
from ppll_cli.transport.ring import RingTransport
from ppll_cli.values import ValueSpec

WAIT_S = 10.0


def test_a_receiver_reads_in_place() -> None:
    """No copy is made: what is received lies in the ring's memory, each tensor aligned."""
    sender, receiver = RingTransport(depth=0).channel(2, 512)
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
    assert seen[1][0] - seen[0][0] == 512


def test_a_message_that_does_not_fit_is_refused() -> None:
    sender, _ = RingTransport(depth=0).channel(1, 128)
    assert sender.wait(WAIT_S)
    with pytest.raises(ValueError, match=r"^\{'x': \[65\]\} take 320 bytes; a slot has 128$"):
        sender.send(None, {"x": torch.zeros(65)})
    sender.send(None, {"x": torch.zeros(32)})


def test_any_message_has_room_for_a_norm() -> None:
    """Norms and marks travel in the channels of the activations, whatever these carry."""
    sender, receiver = RingTransport(depth=0).channel(1, message_bytes([], 8))
    sender.send(None, {"norms": torch.tensor(2.0, dtype=torch.float64)})
    assert receiver.wait(WAIT_S)
    assert receiver.receive()[1]["norms"].item() == 2.0


def test_how_large_a_message_is() -> None:
    specs = [
        ValueSpec((3,), torch.float32),
        ValueSpec((), torch.int64),
        ValueSpec((9, 9), torch.bool),
    ]
    assert message_bytes(specs, samples=8) == 128 + 64 + 704


def test_what_stands_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = RingTransport(depth=2)
    monkeypatch.setattr(ring, "_free_bytes", lambda: 100 << 20)
    assert transport.obstacle(80 << 20, ["cpu", "cpu"]) is None
    assert transport.obstacle(99 << 20, ["cpu"]) == (
        "its slots take 99 MiB, and /dev/shm has 100 MiB left"
    )
    assert transport.obstacle(1, ["cuda:0", "cuda:1"]) == "it is for CPU workers"
    monkeypatch.setattr(ring, "_free_bytes", lambda: None)
    assert transport.obstacle(99 << 40, ["cpu"]) is None
