"""Channels between machines: slots that are filled over torch.distributed's point-to-point.

Each channel has process groups of its own, so that nothing waits behind what it does not depend on.
The sender copies a message into a slot of its own and a thread sends it on; the receiver's thread
asks for the next one only when it has a free slot, which is all the backpressure there is: gloo
sends nothing before it is asked for. What crosses is a head, JSON, and the tensors' bytes, exactly
as many as the head says, so that nothing of an earlier message can be taken for a later one's.
Before the first message the sender tells what it is going to send, and the receiver compares.

gloo takes head and bytes in one piece from the host's memory, which is pinned on CUDA. Where NCCL
carries the bytes from one device's memory into the other's, the head goes before them. NCCL's
transfers occupy both devices until they are through, and those of several channels could wait for
one another in a circle. So none begins before its bytes are complete at one end and there is room
at the other: the sender's thread waits for the device before it sends the head, the receiver's
before it asks for one.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ppll_cli.errors import SchemaError
from ppll_cli.transport.channel import Header, WireDtype, aligned
from ppll_cli.transport.groups import Groups
from ppll_cli.transport.memory import DeviceMemory, HostMemory, Memory
from ppll_cli.transport.order import Moment
from ppll_cli.transport.slots import Layout, Slots, TensorForm, layout_bytes, layout_of

HEAD = 1024
"""Bytes of a head: names, dtypes, shapes and strides of all tensors. Of a longer one that is the
first part, which says how long the rest is."""

LENGTH = 8
"""Digits at the beginning of a head: how long it is without them."""

HEAD_FORM = TensorForm("", torch.uint8, (HEAD,), (1,))
"""In a slot a head lies before the tensors; where it is sent by itself, that room is not used."""

PATIENCE_S = 15.0
"""How long after the loss of a connection an end goes on waiting."""

STAGED = 2
"""Slots of a sender: one is filled while another is on its way."""

Encode = Callable[[Any], Any]
"""Makes JSON of a header, or a header of JSON."""

_Message = tuple[Header, Layout, Sequence[torch.dtype]]
"""With what its tensors were before they were sent."""


def bytes_group(name: str) -> str:
    """The name of the group that carries a channel's bytes, where its own group does not."""
    return f"{name}, bytes"


class _Slots(Slots):
    """Slots in this process's memory.

    Args:
        count: Number of slots.
        size: Bytes of each.
        carrier: Where their bytes are sent from, or come to.
        device: Of the worker.
    """

    def __init__(self, count: int, size: int, carrier: torch.device, device: torch.device) -> None:
        size = HEAD + aligned(size)
        memory: Memory
        if carrier.type == "cpu":
            whole = torch.zeros(count * size, dtype=torch.uint8)
            memory = HostMemory(whole, pinned=device.type != "cpu")
            memory.open()
        else:
            memory = DeviceMemory(count * size, str(carrier))
            memory.make()
        super().__init__(memory, count, size)
        self._numbers: dict[Layout, int] = {}

    def take(self, layout: Layout) -> tuple[int, dict[str, Tensor]]:
        """The next slot and its tensors."""
        return self.next(self._numbers.setdefault(layout, len(self._numbers)), layout)

    def bytes(self, slot: int, layout: Layout | None = None) -> Tensor:
        """A slot, as far as such tensors reach in it, or all of it."""
        assert self.memory.tensor is not None
        length = self.size if layout is None else layout_bytes(layout)
        return self.memory.tensor[slot * self.size :][:length]


class _End:
    """What both ends have.

    Args:
        groups: The run's.
        name: Of the channel's group, whose first rank sends to the second one. Bytes have a group
            of their own where there is one.
        slots: How many the receiver has.
        size: Bytes of a message at most.
        device: Of the worker.
        schema: What is going to be sent, as text; both ends must have the same.
        code: Makes JSON of headers at the sender's end, and headers of JSON at the other.
        wire_dtype: What numbers of float32 become on their way.
    """

    def __init__(
        self,
        groups: Groups,
        name: str,
        slots: int,
        size: int,
        device: str,
        schema: str,
        code: Encode,
        wire_dtype: WireDtype | None,
    ) -> None:
        self._groups, self._name, self._count, self._size = groups, name, slots, size
        self._device, self._schema, self._code = torch.device(device), schema, code
        self._carrying = bytes_group(name) if bytes_group(name) in groups.groups else name
        self._apart = self._carrying != name
        self._wire = torch.bfloat16 if wire_dtype == "bf16" else torch.float32
        self._error: Exception | None = None
        self._failed_s = 0.0

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                if self._side is not None:  # with its device, which is not a new thread's own
                    torch.cuda.set_stream(self._side)
                work()
            except Exception as error:
                self._failed_s, self._error = monotonic(), error

        Thread(target=run, name=f"channel {self._name}", daemon=True).start()

    def _raise(self) -> None:
        """Tell of what went wrong in the thread.

        If the other end or the link is gone, launchers see that and know more, so they are given
        time to say so.
        """
        lost = isinstance(self._error, RuntimeError)
        if self._error is not None and monotonic() - self._failed_s > (PATIENCE_S if lost else 0):
            raise self._error

    def _open(self, slots: int) -> None:
        """Make the slots, and where a device carries their bytes a stream for the thread.

        A transfer waits for what is queued on its thread's stream, which is nothing.
        """
        carrier = self._groups.carrier(self._carrying, self._device)
        self._slots = _Slots(slots, self._size, carrier, self._device)
        self._side: torch.cuda.Stream | None = None
        if carrier.type == "cuda":
            self._side = torch.cuda.Stream(carrier)  # type: ignore[no-untyped-call]

    def _carry(self, transfer: Callable[..., Any], tensor: Tensor, end: int, name: str) -> None:
        """Send to an end of a group, or receive from it; that has been done when this returns."""
        if len(tensor):
            transfer(tensor, self._groups.ranks(name)[end], group=self._groups.of(name))
            Moment(tensor.device).wait()

    def _send(self, tensor: Tensor, name: str) -> None:
        self._carry(dist.send, tensor, 1, name)

    def _receive(self, tensor: Tensor, name: str) -> None:
        self._carry(dist.recv, tensor, 0, name)

    def _receive_head(self, first: Tensor | None = None) -> Any:
        """What a head says, of which the first part may be there already."""
        if first is None:
            first = torch.empty(HEAD, dtype=torch.uint8)
            self._receive(first, self._name)
        length = LENGTH + int(bytes(first[:LENGTH].numpy()))
        rest = torch.empty(max(0, length - HEAD), dtype=torch.uint8)
        self._receive(rest, self._name)
        return json.loads(bytes(torch.cat([first, rest])[LENGTH:length].numpy()))


def _head(content: Any) -> Tensor:
    text = json.dumps(content, separators=(",", ":")).encode()
    data = bytearray(f"{len(text):0{LENGTH}d}".encode() + text)
    return torch.frombuffer(data.ljust(HEAD), dtype=torch.uint8)


class NetworkSender(_End):
    """The producer's end; see `channel.Sender`."""

    bytes_sent = 0

    def open(self) -> None:
        """Make the slots, and tell the other end what is going to come."""
        self._open(STAGED)
        self._free: SimpleQueue[None] = SimpleQueue()
        self._filled: SimpleQueue[tuple[Tensor, Tensor, Moment]] = SimpleQueue()
        self._is_free = False
        for _ in range(STAGED):
            self._free.put(None)
        self._start(self._work)

    def wait(self, timeout_s: float) -> bool:
        """Wait until a slot is free, and return whether there is one."""
        self._raise()
        with suppress(Empty):
            if not self._is_free:
                self._free.get(timeout=timeout_s)
                self._is_free = True
        return self._is_free

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors into the next slot.

        Raises:
            ValueError: They do not fit.
        """
        forms = tuple(
            form._replace(dtype=self._wire) if form.dtype == torch.float32 else form
            for form in layout_of(tensors)
        )
        layout = (HEAD_FORM, *forms)
        self._slots.check_room(layout)
        slot, views = self._slots.take(layout)
        for name, tensor in tensors.items():
            _copy(views[name], tensor.detach())
        spelled = [[*_spelled(form), _named(tensors[form.name].dtype)] for form in forms]
        self._is_free = False
        head = _head([self._code(header), spelled])
        self._filled.put((head, self._slots.bytes(slot, layout), Moment(self._device)))
        self.bytes_sent += sum(views[name].nbytes for name in tensors)

    def _work(self) -> None:
        schema = _head(self._schema)
        self._send(schema[:HEAD], self._name)
        self._send(schema[HEAD:], self._name)
        while True:
            head, whole, filled = self._filled.get()
            filled.wait()
            if self._apart:
                self._send(head[:HEAD], self._name)
            else:
                whole[:HEAD] = head[:HEAD]
                self._send(whole, self._name)
            self._send(head[HEAD:], self._name)
            if self._apart:
                self._send(whole[HEAD:], self._carrying)
            self._free.put(None)


class NetworkReceiver(_End):
    """The consumer's end; see `channel.Receiver`."""

    def open(self) -> None:
        """Make the slots, and ask for the first message."""
        self._open(self._count)
        self._free: SimpleQueue[tuple[int, Moment]] = SimpleQueue()
        self._come: SimpleQueue[_Message] = SimpleQueue()
        self._next: _Message | None = None
        self._held: deque[int] = deque()
        for slot in range(self._count):
            self._free.put((slot, Moment(self._device)))
        self._start(self._work)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a message, and return whether there is one."""
        self._raise()
        with suppress(Empty):
            if self._next is None:
                self._next = self._come.get(timeout=timeout_s)
        return self._next is not None

    def peek(self) -> Header:
        """The header of the next message."""
        assert self._next is not None
        return self._next[0]

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """The next message; its tensors are the slot's until that is released."""
        assert self._next is not None
        (header, layout, dtypes), self._next = self._next, None
        slot, views = self._slots.take(layout)
        self._held.append(slot)
        return header, {
            form.name: views[form.name].detach().to(self._device, non_blocking=True).to(dtype)
            for form, dtype in zip(layout[1:], dtypes, strict=True)
        }

    def release(self) -> None:
        """Give the oldest slot back."""
        self._free.put((self._held.popleft(), Moment(self._device)))

    def _work(self) -> None:
        if (theirs := self._receive_head()) != self._schema:
            raise SchemaError(self._name, str(theirs), self._schema)
        while True:
            slot, given_back = self._free.get()
            given_back.wait()
            whole = self._slots.bytes(slot)
            if self._apart:
                header, spelled = self._receive_head()
            else:
                self._receive(whole, self._name)  # as long as it is; the head says how much
                header, spelled = self._receive_head(whole[:HEAD])
            layout = (HEAD_FORM, *(_form(*parts) for *parts, _ in spelled))
            dtypes = [_dtype(name) for *_, name in spelled]
            self._slots.check_room(layout)
            if self._apart:
                self._receive(self._slots.bytes(slot, layout)[HEAD:], self._carrying)
            self._come.put((self._code(header), layout, dtypes))


def _copy(view: Tensor, tensor: Tensor) -> None:
    """Queue a copy into a slot."""
    if view.device != tensor.device:
        tensor = tensor.to(view.dtype)
        if tensor.stride() != view.stride():  # gaps, with which it would not go straight there
            compact = torch.empty_strided(
                view.shape, view.stride(), dtype=view.dtype, device=tensor.device
            )
            tensor = compact.copy_(tensor)
    view.copy_(tensor, non_blocking=True)


def _spelled(form: TensorForm) -> list[Any]:
    return [form.name, _named(form.dtype), form.shape, form.stride]


def _form(name: str, dtype: str, shape: list[int], stride: list[int]) -> TensorForm:
    return TensorForm(name, _dtype(dtype), tuple(shape), tuple(stride))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
