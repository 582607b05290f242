"""Channels of all transports: within a process, between processes, and between CUDA devices."""

from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppll_cli.leaves import forkserver
from ppll_cli.transport.channel import Receiver, Sender
from tests.transport.far import FarReceiver, serve
from tests.transport.kinds import (
    CASES,
    LIMIT_S,
    Channel,
    Kind,
    OfferedRing,
    Open,
    Tensors,
    assert_same,
    between_processes,
    counting,
    every_kind,
    put,
    take,
)


@pytest.fixture(scope="module")
def commands() -> Iterator[Connection]:
    """Return a connection to another process. It calls methods of receivers as it is told."""
    child = forkserver.Child(serve)
    yield child.link
    child.link.send(None)
    child.process.join(LIMIT_S)
    assert child.process.exitcode == 0


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
