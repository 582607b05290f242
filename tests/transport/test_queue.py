"""Properties that only queues have: a thread of the producer shares the tensors of a message."""

import gc
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
import torch

from ppll_cli.leaves import forkserver
from ppll_cli.transport.queue import QueueReceiver, QueueSender, QueueTransport

WAIT_S = 30.0
MANY = 2000
"""More messages than fit in a pipe, which has 64 KiB. A message takes about 100 bytes."""


def channel(slots: int) -> tuple[QueueSender, QueueReceiver]:
    sender, receiver = QueueTransport(depth=0).channel(slots, 1 << 20)
    sender.open()
    receiver.open()
    return sender, receiver


def test_the_queue_is_a_bounded_queue_of_the_library() -> None:
    sender, _receiver = channel(3)
    queue = sender._queue
    assert isinstance(queue, Queue)
    assert queue._maxsize == 3  # type: ignore[attr-defined]


def test_every_message_has_new_tensors() -> None:
    sender, receiver = channel(3)
    tensor = torch.zeros(4)
    received = []
    for number in range(3):
        assert sender.wait(WAIT_S)
        sender.send(number, {"x": tensor.fill_(number)})
        assert receiver.wait(WAIT_S)
        received.append(receiver.receive()[1]["x"])
    assert not tensor.is_shared()  # type: ignore[no-untyped-call]
    assert all(each.is_shared() for each in received)  # type: ignore[no-untyped-call]
    assert len({each.data_ptr() for each in received}) == 3
    assert [each.tolist() for each in received] == [[number] * 4 for number in range(3)]


def test_peek_and_receive_map_a_message_once() -> None:
    sender, receiver = channel(1)
    sender.send("header", {"x": torch.ones(4)})
    assert receiver.wait(WAIT_S)
    mapped = receiver._next
    assert receiver.peek() == "header"
    assert receiver.wait(0.0)
    assert receiver._next is mapped is not None
    assert receiver.receive()[1] is mapped.tensors


def test_the_receiver_learns_that_a_message_could_not_be_shared() -> None:
    """The library would print a traceback and drop the message.

    Then the receiver would wait for ever.

    The error arrives in the message's place. Later messages still arrive.
    """
    sender, receiver = channel(3)
    sender.send("first", {})
    sender.send(lambda: None, {})  # cannot be pickled
    sender.send("third", {})
    assert receiver.wait(WAIT_S)
    assert receiver.receive()[0] == "first"
    with pytest.raises(RuntimeError, match=r"^the sender could not share a message: .*lambda"):
        receiver.wait(WAIT_S)
    assert receiver.wait(WAIT_S)
    assert receiver.receive()[0] == "third"
    for _ in range(3):
        receiver.release()
    for number in range(3):  # the library's count of messages is right again
        assert sender.wait(WAIT_S)
        sender.send(number, {})
    assert not sender.wait(0.0)
    for number in range(3):
        assert receiver.wait(WAIT_S)
        assert receiver.receive()[0] == number


def test_the_receiver_learns_that_shared_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    sender, receiver = channel(1)
    sender.send(None, {"x": torch.ones(4)})
    with pytest.raises(RuntimeError, match=r"share a message: RuntimeError: .*No space left"):
        receiver.wait(WAIT_S)


def _fill(sender: QueueSender, fails: bool, sent: Connection) -> None:
    sender.open()
    for number in range(MANY):
        assert sender.wait(0.0)
        sender.send(number, {})
    sent.send(sender.wait(0.0))
    if fails:
        raise SystemExit(1)


def _pass_on(sender: QueueSender, done: Connection) -> None:
    """Send many messages, and exit only when all are received."""
    sender.open()
    for number in range(MANY):
        assert sender.wait(WAIT_S)
        sender.send(number, {"x": torch.tensor(number)})
    assert done.poll(WAIT_S)


@pytest.mark.parametrize("fails", [False, True])
def test_a_sender_can_exit_although_nobody_reads(fails: bool) -> None:
    """The pipe is full, and the receiver no longer reads."""
    sender, _receiver = channel(MANY)
    with closing(forkserver.Child(_fill, sender, fails)) as child:
        assert child.link.poll(WAIT_S)
        assert child.link.recv() is False  # all slots are full
        child.process.join(WAIT_S)
        assert child.process.exitcode == int(fails)


@pytest.mark.slow
def test_no_message_is_lost_while_the_sender_is_alive() -> None:
    sender, receiver = channel(5)
    child = forkserver.Child(_pass_on, sender)
    for number in range(MANY):
        assert receiver.wait(WAIT_S)
        header, tensors = receiver.receive()
        assert header == int(tensors["x"]) == number
        receiver.release()
    child.link.send("done")
    child.process.join(WAIT_S)
    assert child.process.exitcode == 0


def test_a_wait_for_a_dead_sender_ends_in_time() -> None:
    sender, receiver = channel(1)
    child = forkserver.Child(_pass_on, sender)
    assert receiver.wait(WAIT_S)
    child.close()
    receiver.receive()
    assert not receiver.wait(0.1)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="file descriptors are not listed")
def test_descriptors_are_counted() -> None:
    """One process has both ends.

    First all slots are full, then all messages are received and held.
    """

    def used() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()  # otherwise objects of earlier tests could be closed during this test
    at_first = used()
    first = channel(1)  # the first channel opens what the library needs once
    first[0].send(None, {"x": torch.ones(2)})
    assert first[1].wait(WAIT_S)
    before = used()  # the library may still close some of these: it sends in a thread
    slots, names = 4, ("x", "y", "z")
    sender, receiver = channel(slots)
    held = []
    for _ in range(slots):
        sender.send(None, {name: torch.ones(2) for name in names})
    for _ in range(slots):
        assert receiver.wait(WAIT_S)
        held.append(receiver.receive())
    at_least = 4 + slots * len(names)  # two pipes, and the held tensors
    assert at_least <= used() - at_first
    assert used() - before <= 2 * QueueTransport(depth=0).descriptors(slots, len(names))
    assert len(held) == slots
