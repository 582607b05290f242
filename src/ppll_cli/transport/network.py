"""Channels between machines, based on point-to-point messages of torch.distributed.

Each channel has process groups of its own, so that channels do not wait for each other. The sender
copies a message into one of its own slots, and a thread sends it. The receiver has a thread too,
which requests the next message only when a slot is free. gloo sends no message before the receiver
requests it. So the sender waits for a slow receiver (backpressure).

First of all, the sender sends a schema: a text that describes the tensors of all messages. The
receiver compares it with its own schema. A message consists of two parts. The first part is called
the head here: JSON with the message's `Header`, and the names, dtypes, shapes and strides of the
tensors. The second part is the bytes of the tensors.

gloo sends both parts together from host memory; only the rest of a long head (see `HEAD`) is sent
separately. With NCCL, gloo sends only the head, and then NCCL sends the bytes from device to
device. A transfer by NCCL occupies both devices until it ends. If it
began before both ends were ready, transfers of several channels could deadlock. Therefore the
sender's thread sends a head only when the bytes are in its slot, and the receiver's thread requests
a head only when a slot is free on its device.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
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
"""Size in bytes of the first part of a head; the rest of a longer head is sent separately. A head
has the message's header, and names, dtypes, shapes and strides of the tensors."""

LENGTH = 8
"""Number of decimal digits with which a head begins. They give the size of its JSON in bytes."""

HEAD_FORM = TensorForm("", torch.uint8, (HEAD,), (1,))
"""The place for a head in a slot, before the tensors. With NCCL, it is not used."""

PATIENCE_S = 15.0
"""Seconds after which a lost connection is an error. Meanwhile launchers can report the cause."""

STAGED = 2
"""Number of slots of a sender: the worker fills one while the thread sends the other."""

Encode = Callable[[Any], Any]
"""Converts headers to data that JSON can hold, or back."""


def bytes_group(name: str) -> str:
    """Return the name of the process group in which NCCL sends tensors of the channel `name`."""
    return f"{name}, bytes"


class _Slots(Slots):
    def __init__(self, count: int, size: int, carrier: torch.device, device: torch.device) -> None:
        size = HEAD + aligned(size)
        memory: Memory
        if carrier.type == "cpu":  # gloo sends from host memory, also if the worker is on CUDA
            whole = torch.zeros(count * size, dtype=torch.uint8)
            memory = HostMemory(whole, pinned=device.type != "cpu")
            memory.open()
        else:
            memory = DeviceMemory(count * size, str(carrier))
            memory.make()
        super().__init__(memory, count, size)

    def bytes(self, slot: int, layout: Layout | None = None) -> Tensor:
        assert self.memory.tensor is not None
        length = self.size if layout is None else layout_bytes(layout)
        return self.memory.tensor[slot * self.size :][:length]


@dataclass(eq=False)
class _End:
    groups: Groups  # of the run; with NCCL, they include `bytes_group(name)`
    name: str  # of the channel's group; the group's first rank sends to the second
    count: int  # number of slots of the receiver; a sender has `STAGED`
    size: int  # largest size of a message in bytes
    device: str  # of the worker
    schema: str  # text that describes the channel's tensors; both ends must have the same schema
    code: Encode  # converts headers to data for JSON at the sender, and back at the receiver
    wire_dtype: WireDtype | None  # to which float32 tensors are converted; None for no conversion

    def __post_init__(self) -> None:
        self._device, name = torch.device(self.device), bytes_group(self.name)
        self._carrying = name if name in self.groups.groups else self.name
        self._apart = self._carrying != self.name
        self._wire = torch.bfloat16 if self.wire_dtype == "bf16" else torch.float32
        self._error: Exception | None = None
        self._failed_s = 0.0

    def open(self) -> None:
        carrier = self.groups.carrier(self._carrying, self._device)
        self._slots = _Slots(self.count, self.size, carrier, self._device)
        self._side: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            # NCCL waits for all earlier work on the current stream, so the thread uses its own.
            self._side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._ready: SimpleQueue[Any] = SimpleQueue()  # the main thread waits for its items
        self._queued: SimpleQueue[Any] = SimpleQueue()  # the channel's thread waits for its items
        self._next: Any = None
        Thread(target=self._run, name=f"channel {self.name}", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        lost = isinstance(self._error, RuntimeError)  # torch raises it if the connection was lost
        if self._error is not None and monotonic() - self._failed_s > (PATIENCE_S if lost else 0):
            raise self._error
        with suppress(Empty):
            if self._next is None:
                self._next = self._ready.get(timeout=timeout_s)
        return self._next is not None

    def _run(self) -> None:
        try:
            if self._side is not None:
                # set_stream also selects the thread's device. Without it, the thread would use
                # device 0, and its first wait would create a context on that device.
                torch.cuda.set_stream(self._side)
            self._work()
        except Exception as error:
            self._failed_s, self._error = monotonic(), error

    def _work(self) -> None:
        raise NotImplementedError

    def _carry(self, transfer: Callable[..., Any], tensor: Tensor, other: int, name: str) -> None:
        if len(tensor):
            # The group's first rank is the channel's sender, the second is the receiver.
            transfer(tensor, self.groups.ranks(name)[other], group=self.groups.of(name))
            Moment(tensor.device).wait()

    def _send(self, tensor: Tensor, name: str) -> None:
        self._carry(dist.send, tensor, 1, name)

    def _receive(self, tensor: Tensor, name: str) -> None:
        self._carry(dist.recv, tensor, 0, name)

    def _receive_head(self, first: Tensor | None = None) -> Any:
        if first is None:
            first = torch.empty(HEAD, dtype=torch.uint8)
            self._receive(first, self.name)
        length = LENGTH + int(bytes(first[:LENGTH].numpy()))
        rest = torch.empty(max(0, length - HEAD), dtype=torch.uint8)
        self._receive(rest, self.name)
        return json.loads(bytes(torch.cat([first, rest])[LENGTH:length].numpy()))


def _head(content: Any) -> Tensor:
    text = json.dumps(content, separators=(",", ":")).encode()
    data = bytearray(f"{len(text):0{LENGTH}d}".encode() + text)
    return torch.frombuffer(data.ljust(HEAD), dtype=torch.uint8)


class NetworkSender(_End):
    """The sender of a channel between machines; see `channel.Sender`."""

    bytes_sent = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count = STAGED

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        forms = tuple(
            form._replace(dtype=self._wire) if form.dtype == torch.float32 else form
            for form in layout_of(tensors)
        )
        layout = (HEAD_FORM, *forms)
        slot, views = self._slots.next(layout)
        for name, tensor in tensors.items():
            _copy(views[name], tensor.detach())
        spelled = [[*_spelled(form), _dtype_name(tensors[form.name].dtype)] for form in forms]
        self._next = None
        head = _head([self.code(header), spelled])
        self._queued.put((head, self._slots.bytes(slot, layout), Moment(self._device)))
        self.bytes_sent += sum(views[name].nbytes for name in tensors)

    def _work(self) -> None:
        for _ in range(self.count):
            self._ready.put(True)
        schema = _head(self.schema)
        self._send(schema[:HEAD], self.name)
        self._send(schema[HEAD:], self.name)
        while True:
            head, whole, filled = self._queued.get()
            filled.wait()
            if self._apart:
                self._send(head[:HEAD], self.name)
            else:
                whole[:HEAD] = head[:HEAD]
                self._send(whole, self.name)
            self._send(head[HEAD:], self.name)
            if self._apart:
                self._send(whole[HEAD:], self._carrying)
            self._ready.put(True)


class NetworkReceiver(_End):
    """The receiver of a channel between machines; see `channel.Receiver`."""

    def peek(self) -> Header:  # noqa: D102
        header: Header = self._next[0]
        return header

    def receive(self) -> tuple[Header, dict[str, Tensor]]:  # noqa: D102
        (header, layout, dtypes), self._next = self._next, None
        _, views = self._slots.next(layout)
        return header, {
            form.name: views[form.name].detach().to(self._device, non_blocking=True).to(dtype)
            for form, dtype in zip(layout[1:], dtypes, strict=True)
        }

    def release(self) -> None:  # noqa: D102
        self._queued.put(Moment(self._device))

    def _work(self) -> None:
        if (theirs := self._receive_head()) != self.schema:
            raise SchemaError(self.name, str(theirs), self.schema)
        for _ in range(self.count):
            self.release()
        for slot in cycle(range(self.count)):  # all messages use the slots in this order
            given_back = self._queued.get()
            given_back.wait()
            whole = self._slots.bytes(slot)
            if self._apart:
                header, spelled = self._receive_head()
            else:
                self._receive(whole, self.name)  # the head says how many bytes are used
                header, spelled = self._receive_head(whole[:HEAD])
            layout = (HEAD_FORM, *(_form(*parts) for *parts, _ in spelled))
            dtypes = [_dtype(name) for *_, name in spelled]
            self._slots.check_room(layout)
            if self._apart:
                self._receive(self._slots.bytes(slot, layout)[HEAD:], self._carrying)
            self._ready.put((self.code(header), layout, dtypes))


def _copy(view: Tensor, tensor: Tensor) -> None:
    if view.device != tensor.device:
        tensor = tensor.to(view.dtype)
        if tensor.stride() != view.stride():  # else torch would copy through another buffer
            compact = torch.empty_strided(
                view.shape, view.stride(), dtype=view.dtype, device=tensor.device
            )
            tensor = compact.copy_(tensor)
    view.copy_(tensor, non_blocking=True)


def _spelled(form: TensorForm) -> list[Any]:
    return [form.name, _dtype_name(form.dtype), form.shape, form.stride]


def _form(name: str, dtype: str, shape: list[int], stride: list[int]) -> TensorForm:
    return TensorForm(name, _dtype(dtype), tuple(shape), tuple(stride))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
