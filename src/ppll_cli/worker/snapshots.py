"""Snapshots of a stage's state in shared memory, from which a restarted worker continues.

A snapshot holds the same tensors as a checkpoint, and besides how far the worker has come: see
`Progress`. The tensors are in one of two buffers, which snapshots fill in turn. A small file says
which of them holds the last snapshot. It is replaced in one step, so a worker that dies while it
writes leaves the older snapshot. Memory is taken once, because that takes longer than the copies.
"""

import os
import pickle
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppll_cli.job.links import Links
from ppll_cli.observe.timeline import Span
from ppll_cli.pipeline.rules import Channel
from ppll_cli.transport.journal import JournalReceiver, JournalSender
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.recorder import Totals
from ppll_cli.worker.state import restore, tensors_of
from ppll_cli.worker.sums import Sums

_ALIGNMENT = 64
"""Alignment of tensors in a buffer, in bytes."""


class _Form(NamedTuple):
    """Where a tensor is in a buffer: its first byte, its dtype and its shape."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """How far a worker has come, apart from its networks and optimizers.

    Attributes:
        items: Number of batches and marks that it has handled.
        trained: Number of training batches among them.
        reported: Number of optimizer steps at its last report of training.
        training: Whether its last batch was a training batch.
        totals: Counts and times of its steady state.
        trace: The traced spans of its first counted batches; empty if they are not complete.
        peak: Peak memory in its steady state, in bytes: used, and reserved; None if unknown.
        seconds: Seconds of each split that are not reported yet.
        sums: For each chunk, its losses and metrics that are not reported yet, by split.
        norms: For each chunk, the squared gradient norm of its last step.
        sent: For each channel to another stage, the number of messages and of bytes sent.
        received: For each channel from another stage, the number of messages received.
        random: The state of Python's and of torch's random numbers, for a user's own code.
    """

    items: int
    trained: int
    reported: int
    training: bool
    totals: Totals
    trace: list[Span]
    peak: tuple[int | None, int | None]
    seconds: Mapping[str, float]
    sums: Mapping[int, Mapping[str, Sums]]
    norms: Mapping[int, Tensor | None]
    sent: Mapping[Channel, tuple[int, int]]
    received: Mapping[Channel, int]
    random: Any


class Snapshots:
    """Writes and reads the snapshots of one worker.

    Args:
        folder: The worker's folder in shared memory.
        every: Largest number of messages between two snapshots, on any channel.
        links: The worker's connections.
    """

    def __init__(self, folder: str, every: int, links: Links) -> None:
        self._file = Path(folder, "last")
        self._every = every
        self._buffers = [_Buffer(Path(folder, f"tensors-{index}")) for index in range(2)]
        self._current = 0
        self._senders: dict[Channel, JournalSender] = {}
        self._receivers: dict[Channel, JournalReceiver] = {}
        for channel, sender in links.senders.items():
            assert isinstance(sender, JournalSender)
            self._senders[channel] = sender
        for source, receiver in links.receivers.items():
            assert isinstance(receiver, JournalReceiver)
            self._receivers[source] = receiver
        self._covered: dict[Channel, int] = {}

    @property
    def due(self) -> bool:
        """Whether a snapshot must be made before the next batch or mark."""
        kept = [receiver.kept for receiver in self._receivers.values()]
        since = [each.position - self._covered.get(c, 0) for c, each in self._senders.items()]
        return max(*kept, *since, 0) >= self._every

    def sent(self) -> dict[Channel, tuple[int, int]]:
        """Return for each channel to another stage the number of messages and of bytes sent."""
        return {c: (each.position, each.bytes_sent) for c, each in self._senders.items()}

    def received(self) -> dict[Channel, int]:
        """Return for each channel from another stage the number of messages received."""
        return {channel: each.position for channel, each in self._receivers.items()}

    def passed(self) -> tuple[int, int]:
        """Return the number of messages sent to the next stage, and received from the last one."""
        ends = self._senders, self._receivers
        sent, received = (
            sum(each.position for channel, each in side.items() if channel.kind == "activations")
            for side in ends
        )
        return sent, received

    def save(self, chunks: Mapping[int, HeldChunk], progress: Progress) -> None:
        """Write a snapshot, and then free the messages that it covers.

        Raises:
            OSError: Shared memory is full.
        """
        index, new = 1 - self._current, self._file.with_suffix(".new")
        with new.open("wb") as file:
            forms = self._buffers[index].fill(tensors_of(chunks.values()))
            pickle.dump((index, forms, progress), file, pickle.HIGHEST_PROTOCOL)
        os.replace(new, self._file)
        self._current = index
        for receiver in self._receivers.values():
            receiver.free()
        self._covered = {channel: each.position for channel, each in self._senders.items()}

    def load(self, chunks: Mapping[int, HeldChunk]) -> Progress | None:
        """Restore the networks and the channels as they were at the last snapshot.

        Returns:
            How far the worker had come; None if there is no snapshot. Then the new worker begins
            where the first one began, and no message has been freed.
        """
        if not self._file.exists():
            return None
        # Unpickling is safe here: a worker of the same run wrote the bytes.
        last: Any = pickle.loads(self._file.read_bytes())
        self._current, forms, progress = last
        restore(chunks.values(), _Saved(self._buffers[self._current], forms))
        assert isinstance(progress, Progress)
        for number, sums in progress.sums.items():
            chunk = chunks[number]
            chunk.sums = {split: _on(each, chunk.device) for split, each in sums.items()}
        for number, norm in progress.norms.items():
            chunks[number].squared_norm = None if norm is None else norm.to(chunks[number].device)
        for channel, (messages, size) in progress.sent.items():
            self._senders[channel].position, self._senders[channel].bytes_sent = messages, size
            self._covered[channel] = messages
        for channel, messages in progress.received.items():
            self._receivers[channel].go_back(messages)
        set_random_state(progress.random)
        return progress


def random_state() -> Any:
    """Return the states of Python's and of torch's random numbers on CPU."""
    return random.getstate(), torch.get_rng_state()


def set_random_state(state: Any) -> None:
    """Set the states that `random_state` returned."""
    python, ours = state
    random.setstate(python)
    torch.set_rng_state(ours)


def on_host(sums: Mapping[str, Sums]) -> dict[str, Sums]:
    """Return copies of sums in which all tensors are on the CPU."""
    return {split: _on(each, torch.device("cpu")) for split, each in sums.items()}


def _on(sums: Sums, device: torch.device) -> Sums:
    loss = sums.loss.to(device) if isinstance(sums.loss, Tensor) else sums.loss
    # Clone, because pickle writes the whole memory of which a tensor may be a part.
    rows = [sums.rows.to(device).clone()] if sums.measures else []
    return Sums(loss, int(sums.samples), rows)


class _Buffer:
    """A file in shared memory that is filled with tensors.

    Args:
        path: The file. It is made, or enlarged, when it is filled.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = torch.empty(0, dtype=torch.uint8)

    def fill(self, tensors: Mapping[str, Tensor]) -> dict[str, _Form]:
        """Copy tensors into the buffer, and return where they are.

        Raises:
            OSError: Shared memory is full.
        """
        forms, size = {}, 0
        for name, tensor in tensors.items():
            forms[name] = _Form(size, tensor.dtype, tuple(tensor.shape))
            size += -(-tensor.numel() * tensor.itemsize // _ALIGNMENT) * _ALIGNMENT
        if size > self._memory.numel():
            with self._path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # otherwise a write ends the process
            self.map(size)
        for name, tensor in tensors.items():
            self.view(forms[name]).copy_(tensor.detach())
        return forms

    def map(self, size: int) -> None:
        """Map the first `size` bytes of the file."""
        self._memory = torch.from_file(str(self._path), shared=True, size=size, dtype=torch.uint8)

    def view(self, form: _Form) -> Tensor:
        """Return a tensor in the buffer."""
        end = form.start + prod(form.shape) * form.dtype.itemsize
        if end > self._memory.numel():
            self.map(end)
        return self._memory[form.start : end].view(form.dtype).view(form.shape)


class _Saved:
    """The tensors of a snapshot; see `checkpoint.Saved`."""

    def __init__(self, buffer: _Buffer, forms: Mapping[str, _Form]) -> None:
        self._buffer, self._forms = buffer, forms

    @property
    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._forms.keys()

    def __getitem__(self, name: str) -> Tensor:
        return self._buffer.view(self._forms[name]).clone()  # the next snapshot but one writes here
