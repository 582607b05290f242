"""Channels over torch.distributed, between two processes that the test commands."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from time import monotonic, perf_counter
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ppll_cli.errors import SchemaError
from ppll_cli.leaves import forkserver
from ppll_cli.transport import groups as grouping
from ppll_cli.transport.channel import aligned
from ppll_cli.transport.groups import Group, Groups, ProcessGroup
from ppll_cli.transport.network import HEAD, STAGED, NetworkReceiver, NetworkSender, bytes_group
from tests.transport.kinds import CASES, LIMIT_S, assert_same, counting, each

FAST_S = 1000.0
"""The clock of the second process is this many seconds ahead."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """The group that carries bytes, and the devices of a channel's ends."""

    backend: str | None
    """Backend of the group for bytes. If it is None, there is no such group."""

    devices: tuple[str, str] = ("cpu", "cpu")


ON_CPU = {"one group": Kind(None), "two groups": Kind("gloo")}
ON_CUDA = {"pinned": Kind(None, ("cuda:0", "cuda:0"))}
ON_TWO = {"nccl": Kind("nccl", ("cuda:0", "cuda:1"))}


class LaterGroups(Groups):
    """Makes each group at its first use. Both ends do so in the same order."""

    def of(self, name: str) -> ProcessGroup:
        if name not in self._made:
            self._made[name] = dist.new_group([0, 1], backend=self.groups[name].backend)
        return self._made[name]


def serve(rank: int, store: str, commands: Connection) -> None:
    """Run a process: execute commands on its end of the channel that was made last."""
    known = {"all": Group((0, 1), "gloo"), "from first": Group((0, 1), "gloo", directed=True)}
    groups = LaterGroups(f"file://{store}", rank, 2, known, "lo", apart=True)

    def clock() -> float:
        return perf_counter() + FAST_S * rank

    with mock.patch.object(grouping, "perf_counter", clock):
        groups.open(torch.device("cpu"))
    make: Any = NetworkSender if rank == 0 else NetworkReceiver
    end: Any = None
    device = "cpu"
    while (command := commands.recv()) is not None:
        name, *arguments = command
        answer: Any = None
        try:
            if name == "make":
                kind, channel, slots, size, schema, wire_dtype = arguments
                device = kind.devices[rank]
                known[channel] = Group((0, 1), "gloo")
                if kind.backend is not None:
                    known[bytes_group(channel)] = Group((0, 1), kind.backend, directed=True)
                end = make(groups, channel, slots, size, device, schema, _same, wire_dtype)
                end.open()
            elif name == "ahead":
                answer = groups.ahead_s
            elif name == "size":
                answer = end._slots.memory.tensor.numel()
            elif name in ("send", "send with gaps"):
                header, tensors = arguments
                there = {n: tensor.to(device, copy=True) for n, tensor in tensors.items()}
                if name == "send with gaps":
                    there = {n: torch.stack([t, -t], dim=-1)[..., 0] for n, t in there.items()}
                end.send(header, there)
                for tensor in there.values():
                    tensor.zero_()
            elif name == "receive":
                header, tensors = end.receive()
                answer = header, {n: tensor.to("cpu", copy=True) for n, tensor in tensors.items()}
            else:
                answer = getattr(end, name)(*arguments)
        except Exception as error:
            answer = error
        commands.send(answer)
    os._exit(0)  # threads of the channels may still be waiting


def _same(header: Any) -> Any:
    return header


class Far:
    """Sends commands to the end of a channel in one of the processes."""

    def __init__(self, commands: Connection) -> None:
        self._commands = commands

    def __call__(self, *command: object) -> Any:
        self._commands.send(command)
        assert self._commands.poll(60.0), f"no answer to {command}"
        answer = self._commands.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


Open = Callable[..., tuple[Far, Far]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Far, Far]]:
    store = tmp_path_factory.mktemp("network") / "store"
    children = [forkserver.Child(serve, rank, str(store)) for rank in range(2)]
    yield Far(children[0].link), Far(children[1].link)
    for child in children:
        child.link.send(None)
        child.process.join(LIMIT_S)
        assert child.process.exitcode == 0


def test_the_offset_between_two_clocks_is_measured(ends: tuple[Far, Far]) -> None:
    assert ends[0]("ahead") == 0.0
    assert ends[1]("ahead") == pytest.approx(FAST_S, abs=0.1)


NAMES = count()


@pytest.fixture(params=[*each(ON_CPU), *each(ON_CUDA, 1), *each(ON_TWO, 2)])
def open_channel(ends: tuple[Far, Far], request: pytest.FixtureRequest) -> Open:
    """Return a function that opens a channel, given its slots and the largest tensors.

    The schemas of both ends and the dtype of transfer may be given too.
    """

    def open_channel(
        slots: int,
        largest: Tensors,
        schemas: tuple[str, str] = ("same", "same"),
        wire_dtype: str | None = None,
    ) -> tuple[Far, Far]:
        size = sum(aligned(tensor.nbytes) for tensor in largest.values())
        name = f"channel {next(NAMES)}"
        for end, schema in zip(ends, schemas, strict=True):
            end("make", request.param, name, slots, size, schema, wire_dtype)
        return ends

    return open_channel


def put(sender: Far, header: object, tensors: Tensors) -> None:
    assert sender("wait", LIMIT_S)
    sender("send", header, tensors)


def take(receiver: Far) -> tuple[object, dict[str, Tensor]]:
    assert receiver("wait", LIMIT_S)
    header, tensors = receiver("receive")
    return header, tensors


MANY = {f"a tensor with number {n}": counting(n % 3 + 1) for n in range(100)}
"""The names and shapes of these tensors do not fit into the first part of a header."""


@pytest.mark.parametrize("case", [*CASES, "many"])
def test_tensors_arrive_as_they_were_sent(open_channel: Open, case: str) -> None:
    tensors = {**CASES, "many": MANY}[case]
    sender, receiver = open_channel(1, tensors)
    for number in range(2):
        put(sender, ["header", number], tensors)
        header, received = take(receiver)
        assert header == ["header", number]
        assert_same(received, tensors)
        receiver("release")
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert sender("__getattribute__", "bytes_sent") == 2 * size


@pytest.mark.parametrize("wire_dtype", [None, "bf16"])
def test_tensors_with_gaps_arrive_dense(open_channel: Open, wire_dtype: str | None) -> None:
    tensors = {"x": counting(3, 4, 5)}
    sender, receiver = open_channel(1, tensors, wire_dtype=wire_dtype)
    assert sender("wait", LIMIT_S)
    sender("send with gaps", None, tensors)
    assert_same(take(receiver)[1], tensors)


def test_heads_of_any_length_arrive(open_channel: Open) -> None:
    """A long header is sent in two parts.

    The lengths are near the limit, and one is far above it.
    """
    sender, receiver = open_channel(1, {})
    for length in (0, *range(HEAD - 20, HEAD + 5), 10 * HEAD):
        put(sender, "ü" * (length // 6) + "x" * (length % 6), {})
        header, _ = take(receiver)
        assert header == "ü" * (length // 6) + "x" * (length % 6)
        receiver("release")


def test_a_short_message_contains_nothing_of_an_earlier_longer_one(open_channel: Open) -> None:
    sender, receiver = open_channel(1, {"x": counting(4, 3)})
    for samples in (4, 3, 1, 4):
        put(sender, samples, {"x": counting(samples, 3) + samples})
        header, tensors = take(receiver)
        assert header == samples
        assert_same(tensors, {"x": counting(samples, 3) + samples})
        receiver("release")


@pytest.mark.parametrize("slots", [1, 3])
def test_a_full_channel_makes_the_sender_wait(open_channel: Open, slots: int) -> None:
    """The receiver holds one message for each slot, and two more messages wait at the sender."""
    sender, receiver = open_channel(slots, {"x": counting(2)})
    for number in range(slots + STAGED):
        put(sender, number, {"x": counting(2) + number})
    assert not sender("wait", 0.2)
    held = [take(receiver) for _ in range(slots)]
    assert not receiver("wait", 0.2)  # received, but not released
    assert not sender("wait", 0.0)
    for number in range(slots + STAGED, slots + STAGED + 3):
        receiver("release")
        put(sender, number, {"x": counting(2) + number})
        held.append(take(receiver))
    assert [header for header, _ in held] == list(range(slots + 3))
    for header, tensors in held:
        assert isinstance(header, int)
        assert_same(tensors, {"x": counting(2) + header})


def test_a_held_message_keeps_its_values(open_channel: Open) -> None:
    sender, receiver = open_channel(2, {"x": counting(2)})
    put(sender, 0, {"x": counting(2)})
    put(sender, 1, {"x": counting(2) + 1})
    take(receiver)
    take(receiver)
    put(sender, 2, {"x": counting(2) + 2})
    receiver("release")  # the slot of the first message, not of the second
    assert_same(take(receiver)[1], {"x": counting(2) + 2})
    assert receiver("size") == 2 * (HEAD + aligned(1))


def test_wire_dtype_bf16_rounds_float32_tensors(open_channel: Open) -> None:
    exact = {"x": counting(4) / 3, "label": counting(4, dtype=torch.int64)}
    sender, receiver = open_channel(1, exact, wire_dtype="bf16")
    put(sender, None, exact)
    rounded = {**exact, "x": exact["x"].bfloat16().float()}
    assert not torch.equal(rounded["x"], exact["x"])
    assert_same(take(receiver)[1], rounded)
    assert sender("__getattribute__", "bytes_sent") == 4 * 2 + 4 * 8


def wait_on(end: Far) -> None:
    """Wait until a message has arrived. Errors of the channel are raised."""
    until_s = monotonic() + LIMIT_S
    while not end("wait", 0.05):
        assert monotonic() < until_s


def test_ends_with_different_schemas_are_refused(open_channel: Open) -> None:
    _, receiver = open_channel(1, {}, schemas=("images of 32x32", "images of 28x28"))
    with pytest.raises(SchemaError, match="images of 32x32"):
        wait_on(receiver)


def test_a_message_larger_than_a_slot_is_refused(open_channel: Open) -> None:
    sender, _ = open_channel(1, {"x": counting(4)})
    assert sender("wait", LIMIT_S)
    with pytest.raises(ValueError, match="bytes"):
        sender("send", None, {"x": counting(400)})
