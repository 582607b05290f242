"""How CUDA streams are ordered, tested without a device.

`Cuda` replaces the runtime. Work that is queued on a stream is done later, when the test lets the
stream continue. Waiting for an event means waiting for its last record. The real code runs on top
of it; only its operations on tensors are queued too.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppll_cli.transport.order import CudaOrder, HostOrder, Moment, let_default_stream_wait
from tests.transport.fake_cuda import WAIT_S, Cuda, Event, Program, make_ring


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


@pytest.mark.parametrize("aside", [False, True])
@settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
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
    patched: Callable[[], Cuda], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
        "cuda:0 also uses memory of cuda:1: peer access is not supported between these two devices"
    ]
    with pytest.raises(RuntimeError, match="peer access"):
        CudaOrder("cuda:0", "cuda:0", aside=False).learn(b"1")


def test_without_ipc_each_host_waits_for_its_device(patched: Callable[[], Cuda]) -> None:
    cuda = patched()
    device, done = torch.device("cuda:1"), list[str]()
    order = HostOrder("cuda:1")
    cuda.current_stream(device).put(lambda: done.append("computed"))
    view = torch.zeros(3)
    assert order.fill(0, {"x": view}, {"x": torch.ones(3)}) == b""
    assert done == ["computed"]
    assert torch.equal(view, torch.ones(3))
    order.take(0)
    cuda.current_stream(device).put(lambda: done.append("read"))
    assert order.give_back(0) == b""
    assert done == ["computed", "read"]
    assert not Event.opened


@pytest.mark.parametrize("call", ["ipc_handle", "from_ipc_handle"])
def test_an_error_of_ipc_names_the_remedy(
    patched: Callable[[], Cuda], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The driver may support what a container forbids."""
    cuda = patched()

    def forbidden(*_: object) -> None:
        raise RuntimeError("CUDA error: operation not supported\nand so on")

    monkeypatch.setattr(Event, call, forbidden)
    sender, receiver, *_ = make_ring(cuda, 1, "cuda:0", "cuda:0", aside=False)

    def send_a_message() -> None:
        assert sender.wait(WAIT_S)
        sender.send(None, {"x": torch.ones(3)})
        assert receiver.wait(WAIT_S)
        receiver.receive()

    with pytest.raises(
        RuntimeError, match=r"not supported; if this machine .* transport\.ipc=false"
    ):
        send_a_message()


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
