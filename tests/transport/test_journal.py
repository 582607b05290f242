"""A ring that keeps its messages until a snapshot covers them, so that either end can restart."""

import copy
from typing import Any

import pytest
import torch

from ppll_cli.errors import ReplayError
from ppll_cli.transport import journal, memory
from ppll_cli.transport.channel import ALIGNMENT
from ppll_cli.transport.journal import JournalReceiver, JournalSender, JournalTransport
from tests.conftest import shared_memory

WAIT_S = 10.0


def channel(slots: int = 3) -> tuple[JournalSender, JournalReceiver]:
    sender, receiver = JournalTransport(depth=1).channel(slots, 2 * ALIGNMENT)
    receiver.keeps = True
    sender.open()
    receiver.open()
    return sender, receiver


def again(end: Any) -> Any:
    """Return the end as a new process has it: with the parent's state, not the first worker's."""
    end = copy.copy(end)
    end.open()
    return end


def message(number: int) -> dict[str, torch.Tensor]:
    return {"x": torch.full((2, 3), float(number)), "flag": torch.tensor(number % 2 == 0)}


def send(sender: JournalSender, *numbers: int) -> None:
    for number in numbers:
        assert sender.wait(WAIT_S)
        sender.send(f"header {number}", message(number))


def receive(receiver: JournalReceiver, *numbers: int) -> None:
    for number in numbers:
        assert receiver.wait(WAIT_S)
        assert receiver.peek() == f"header {number}"
        header, tensors = receiver.receive()
        assert header == f"header {number}"
        for name, tensor in message(number).items():
            assert torch.equal(tensors[name], tensor)
        receiver.release()


def test_slots_of_a_stage_without_snapshots_are_free_at_once() -> None:
    sender, receiver = channel(slots=2)
    receiver.keeps = False
    for number in range(5):
        assert sender.wait(0)
        sender.send(number, {"x": torch.tensor([number])})
        assert receiver.receive()[0] == number
        receiver.release()
        assert receiver.kept == 0


def test_a_slot_is_free_only_when_the_device_has_copied_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without this wait, the sender could fill the slot before a queued copy has read it."""
    seen: list[str] = []

    class Moment:
        def __init__(self, device: torch.device) -> None:
            seen.append("copied")

        def wait(self) -> None:
            seen.append(f"waited, with {receiver.kept} slots kept")

    sender, receiver = channel()
    receiver.keeps = False
    send(sender, 0)
    monkeypatch.setattr(journal, "Moment", Moment)
    receive(receiver, 0)
    assert seen == ["copied", "waited, with 1 slots kept"]
    assert receiver.kept == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_slot_on_cuda_is_filled_again_only_when_its_message_was_copied() -> None:
    sender, receiver = JournalTransport(depth=1).channel(1, 2 * ALIGNMENT, "cpu", "cuda:0")
    sender.open()
    receiver.open()
    send(sender, 0)
    torch.cuda._sleep(10**8)  # type: ignore[no-untyped-call]
    received = receiver.receive()[1]
    receiver.release()
    send(sender, 1)
    for name, tensor in message(0).items():
        assert torch.equal(received[name].cpu(), tensor)


def test_the_sender_gets_slots_back_only_after_a_snapshot() -> None:
    sender, receiver = channel()
    send(sender, 0, 1, 2)
    receive(receiver, 0, 1)
    assert not sender.wait(0)
    assert receiver.kept == 2
    receiver.free()
    assert receiver.kept == 0
    send(sender, 3, 4)
    assert not sender.wait(0)
    receive(receiver, 2, 3, 4)


def test_a_new_receiver_reads_the_messages_that_no_snapshot_covers_again() -> None:
    first_sender, first = channel()
    pristine = copy.copy(first)
    send(first_sender, 0, 1, 2)
    receive(first, 0)
    first.free()
    receive(first, 1, 2)
    second = again(pristine)
    second.go_back(1)
    receive(second, 1, 2)
    assert not second.wait(0)
    send(first_sender, 3)
    receive(second, 3)


def test_a_new_receiver_frees_the_slots_that_the_old_one_did_not_free_after_its_snapshot() -> None:
    """The old receiver died after it had written its snapshot. The ring has three slots."""
    sender, first = channel()
    pristine = copy.copy(first)
    send(sender, 0, 1, 2)
    receive(first, 0, 1)
    assert not sender.wait(0)
    second = again(pristine)
    second.go_back(2)
    assert sender.wait(0)
    send(sender, 3, 4)
    receive(second, 2, 3, 4)


def test_a_new_sender_does_not_write_messages_that_the_journal_has_already() -> None:
    first, receiver = channel()
    pristine = copy.copy(first)
    send(first, 0, 1, 2)
    receive(receiver, 0, 1)
    receiver.free()
    second = again(pristine)
    assert second.already_sent() == "header 0"
    send(second, 0, 1, 2)
    assert second.already_sent() is None
    send(second, 3)
    receive(receiver, 2, 3)
    assert not receiver.wait(0)
    assert second.bytes_sent == 4 * (6 * 4 + 1)


def test_a_new_sender_repeats_messages_without_a_free_slot() -> None:
    """Messages that are there already need no slot."""
    first, _ = channel()
    pristine = copy.copy(first)
    send(first, 0, 1, 2)
    second = again(pristine)
    send(second, 0, 1, 2)
    assert not second.wait(0)


@pytest.mark.parametrize(
    ("header", "tensors"),
    [
        ("header 0", {**message(0), "x": torch.full((2, 3), 1e-30)}),
        ("header 0", {"x": message(0)["x"]}),
        ("header 0", {**message(0), "x": torch.zeros(3, 2)}),
        ("header 0", {**message(0), "x": -torch.zeros(2, 3)}),
        ("another", message(0)),
    ],
    ids=["value", "names", "shape", "sign of zero", "header"],
)
def test_a_repeated_message_that_differs_from_the_first_is_an_error(
    header: str, tensors: Any
) -> None:
    first, _ = channel()
    pristine = copy.copy(first)
    send(first, 0)
    second = again(pristine)
    with pytest.raises(ReplayError, match="recover=off"):
        second.send(header, tensors)


def test_nan_does_not_make_a_repeated_message_differ() -> None:
    first, _ = channel()
    pristine = copy.copy(first)
    tensors = {"x": torch.tensor([float("nan")])}
    first.send("nan", tensors)
    again(pristine).send("nan", tensors)


def test_a_new_worker_wakes_the_other_end_if_the_dead_one_did_not() -> None:
    """The next worker wakes the other end when it opens its own end."""
    first, receiver = channel()
    first._wakeup.wake = lambda: None  # type: ignore[method-assign]
    pristine = copy.copy(first)
    send(first, 0)
    while receiver._wakeup._woken.ready(0):
        receiver._wakeup.wait(0)
    del pristine._wakeup.wake
    again(pristine)
    assert receiver._wakeup._woken.ready(0)


def test_a_full_pipe_of_wake_ups_does_not_block_the_sender() -> None:
    sender, _receiver = channel()
    for _ in range(1 << 17):
        sender._wakeup.wake()


def test_received_tensors_are_copies() -> None:
    """A network may change its inputs in place; the journal must keep what was sent."""
    sender, first = channel()
    pristine = copy.copy(first)
    send(sender, 0)
    first.receive()[1]["x"].fill_(5)
    receive(again(pristine), 0)


def test_a_received_tensor_has_the_strides_of_the_sent_one() -> None:
    sender, receiver = channel()
    pristine = copy.copy(sender)
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    sender.send("x", {"x": x})
    again(pristine).send("x", {"x": x})
    found = receiver.receive()[1]["x"]
    assert found.stride() == x.stride()
    assert torch.equal(found, x)


def test_a_message_that_does_not_fit_is_refused() -> None:
    sender, _ = channel()
    with pytest.raises(ValueError, match="a slot has 1024"):
        sender.send("x", {"x": torch.zeros(300)})


def test_a_head_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LARGEST_HEAD", 64)
    sender, _ = channel()
    with pytest.raises(ValueError, match="use recover=off"):
        sender.send("x" * 64, {"x": torch.zeros(3)})


def test_too_little_shared_memory_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between CUDA devices, because messages lie in the memory of the host."""
    shared_memory(monkeypatch, 8 << 20)
    transport = JournalTransport(depth=1)
    assert transport.obstacle(4 << 20, ["cpu"]) is None
    for devices in (["cpu"], ["cuda:0", "cuda:1"]):
        assert "has room for 7 MiB" in (transport.obstacle(9 << 20, devices) or "")
    assert memory.no_room(9 << 20)
