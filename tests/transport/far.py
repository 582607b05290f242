"""A receiver in another process, used as if it were in this one.

Tests of channels use it, so that the same lines test channels within a process, between two
processes, and on CUDA. On CUDA there is no other way: a process cannot open memory that it has
shared itself.
"""

import pickle
from collections.abc import Mapping
from multiprocessing import context, resource_sharer
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from ppll_cli.transport.channel import Header, Receiver, Sender


def serve(commands: Connection) -> None:
    """Run the other process: call the given methods on the receiver that was given last."""
    receiver: Receiver
    while (command := commands.recv()) is not None:
        name, *arguments = command
        if name == "use":
            receiver = pickle.loads(*arguments)
            receiver.open()
            commands.send(None)
        elif name == "receive":
            header, tensors = receiver.receive()
            commands.send((header, {name: _copy(tensor) for name, tensor in tensors.items()}))
        else:
            commands.send(getattr(receiver, name)(*arguments))


class FarReceiver:
    """Calls a receiver's methods in the other process.

    The tensors that it returns are copies on CPU.
    """

    def __init__(self, commands: Connection, receiver: Receiver) -> None:
        self._commands, self._receiver = commands, receiver

    def open(self) -> None:
        self._call("use", _as_for_a_start(self._receiver))

    def wait(self, timeout_s: float) -> bool:
        return bool(self._call("wait", timeout_s))

    def peek(self) -> Header:
        return self._call("peek")

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        received = self._call("receive")
        assert isinstance(received, tuple)
        return received

    def release(self) -> None:
        self._call("release")

    def _call(self, *command: object) -> object:
        self._commands.send(command)
        assert self._commands.poll(60.0), f"no answer to {command}"
        return self._commands.recv()


class _Start:
    """Takes the place of a process that is being started, and gets file descriptors for it."""

    DupFd = staticmethod(resource_sharer.DupFd)

    def duplicate_for_child(self, descriptor: int) -> int:
        return descriptor


def _as_for_a_start(receiver: Receiver) -> bytes:
    """Pickle an end of a channel as at the start of a process. Only then can queues be pickled.

    So many tests can use the same process.
    """
    library: Any = context
    library.set_spawning_popen(_Start())
    try:
        return bytes(ForkingPickler.dumps(receiver))
    finally:
        library.set_spawning_popen(None)


class Uploading:
    """Copies tensors from CPU to a device, sends the copies, and then overwrites them."""

    def __init__(self, sender: Sender, device: str) -> None:
        self._sender, self._device = sender, device
        self.bytes_sent = 0

    def open(self) -> None:
        self._sender.open()

    def wait(self, timeout_s: float) -> bool:
        return self._sender.wait(timeout_s)

    def send(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        there = {name: tensor.to(self._device, copy=True) for name, tensor in tensors.items()}
        self._sender.send(header, there)
        self.bytes_sent = self._sender.bytes_sent
        for tensor in there.values():
            tensor.detach().zero_()


def _copy(tensor: Tensor) -> Tensor:
    copy = torch.empty_like(tensor, device="cpu")
    return copy.copy_(tensor)
