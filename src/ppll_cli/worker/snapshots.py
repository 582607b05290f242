"""Snapshots of a stage's state in shared memory, from which a restarted worker continues.

A snapshot has the tensors of a checkpoint, and the worker's `Progress`. There are two buffers for
tensors, which snapshots fill alternately. So the previous snapshot remains if a worker dies while
it writes. The file `last` says which buffer has the latest snapshot; it is replaced atomically.
"""

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor

from ppll_cli.job.links import Links
from ppll_cli.job.snapshots import BUFFERS, messages_between
from ppll_cli.leaves.random_states import random_states, restore_random_states
from ppll_cli.observe.spans import Span
from ppll_cli.pipeline.rules import Channel
from ppll_cli.transport.journal import JournalReceiver, JournalSender
from ppll_cli.transport.memory import HostMemory
from ppll_cli.transport.slots import Layout, Slots, layout_bytes, layout_of
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.recorder import Totals
from ppll_cli.worker.state import restore, tensors_of
from ppll_cli.worker.sums import Sums


@dataclass
class Progress:
    """A worker's position in the run, and its measurements so far.

    Only the position is always up to date. `totals`, `trace`, `peak` and `seconds` are set when a
    snapshot is taken.

    Attributes:
        items: Number of batches and marks that the worker has handled.
        trained: Number of training batches that the worker has handled.
        reported: Number of optimizer steps at the last report of training.
        training: Whether the worker was measuring the time of training.
        totals: Counts and times of the steady state.
        trace: The traced spans; empty until the trace is complete.
        peak: Results of `Memory.peak` and `Memory.reserved`, in bytes or None.
        seconds: Seconds of each split that are not reported yet.
    """

    items: int = 0
    trained: int = 0
    reported: int = 0
    training: bool = False
    totals: Totals = field(default_factory=Totals)
    trace: list[Span] = field(default_factory=list)
    peak: tuple[int | None, int | None] = None, None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    buffer: int  # index of the buffer with the tensors
    layout: Layout
    sums: Mapping[int, Mapping[str, Sums]]  # losses and metrics not reported yet, by chunk
    norms: Mapping[int, Tensor | None]  # squared gradient norm of the last step, by chunk
    sent: Mapping[Channel, tuple[int, int]]  # numbers of messages and bytes
    received: Mapping[Channel, int]  # number of messages
    random: tuple[dict[str, Any], Tensor]  # for a user's own code
    progress: Progress  # without the trace
    trace: bytes


class Snapshots:
    """Writes and reads the snapshots of one worker, in a folder in shared memory.

    Args:
        folder: The worker's folder.
        most: A snapshot is due at the latest when a channel has carried `most` messages since the
            last snapshot. The channel keeps these messages for a restart (see `Job.kept`).
        fixed: Whether a snapshot is due only then. If not, snapshots may be more frequent, as long
            as they take little of the time (see `messages_between`).
        links: Has the channels of the stage.
    """

    def __init__(self, folder: str, most: int, fixed: bool, links: Links) -> None:
        self._file = Path(folder, "last")
        self._most, self._fixed = most, fixed
        self._every = most
        self._ended_s: float | None = None  # when the last snapshot ended
        self._buffers = [_Buffer(Path(folder, f"tensors-{index}")) for index in range(BUFFERS)]
        self._current = 0
        self._senders = cast("Mapping[Channel, JournalSender]", links.senders)
        self._receivers = cast("Mapping[Channel, JournalReceiver]", links.receivers)
        for receiver in self._receivers.values():
            receiver.keeps = True
        self._covered: Mapping[Channel, tuple[int, int]] = {}
        self._trace: list[Span] | None = None
        self._pickled_trace = b""

    @property
    def due(self) -> bool:
        """Whether a snapshot is due before the next batch or mark."""
        return self._since_last() >= self._every

    def _since_last(self) -> int:
        kept = [receiver.kept for receiver in self._receivers.values()]
        nothing = 0, 0
        for channel, sender in self._senders.items():
            kept.append(sender.position - self._covered.get(channel, nothing)[0])
        return max(kept)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure the time of the snapshot in the `with` block, to choose when the next is due."""
        messages, began_s = self._since_last(), perf_counter()
        yield
        before_s, self._ended_s = self._ended_s, perf_counter()
        # The first snapshot does not count. It takes longer, because its memory is new.
        if before_s is not None and messages and not self._fixed:
            taken_s, message_s = self._ended_s - began_s, (began_s - before_s) / messages
            self._every = messages_between(taken_s, message_s, self._most)

    def messages(self) -> tuple[int, int]:
        """Return how many messages with activations the stage has sent and received."""
        ends = self._senders, self._receivers
        sent, received = (
            sum(each.position for channel, each in side.items() if channel.kind == "activations")
            for side in ends
        )
        return sent, received

    def save(self, chunks: Mapping[int, HeldChunk], progress: Progress) -> None:
        """Write a snapshot, and free the slots of the messages that were received before it.

        Raises:
            OSError: Shared memory is full.
        """
        new = self._file.with_suffix(".new")
        with new.open("wb") as file:
            index = 1 - self._current
            state = _State(
                buffer=index,
                layout=self._buffers[index].fill(tensors_of(chunks.values())),
                sums={n: _on(chunk.sums, torch.device("cpu")) for n, chunk in chunks.items()},
                norms={number: chunk.squared_norm for number, chunk in chunks.items()},
                sent={c: (each.position, each.bytes_sent) for c, each in self._senders.items()},
                received={c: each.position for c, each in self._receivers.items()},
                random=(random_states(), torch.get_rng_state()),
                progress=replace(progress, trace=[]),
                trace=self._pickled(progress.trace),
            )
            pickle.dump(state, file, pickle.HIGHEST_PROTOCOL)
        os.replace(new, self._file)
        self._current, self._covered = index, state.sent
        for receiver in self._receivers.values():
            receiver.free()

    def _pickled(self, trace: list[Span]) -> bytes:
        if trace is not self._trace:  # a trace can be long, so do not pickle it again
            self._trace = trace
            self._pickled_trace = pickle.dumps(trace, pickle.HIGHEST_PROTOCOL)
        return self._pickled_trace

    def load(self, chunks: Mapping[int, HeldChunk]) -> Progress | None:
        """Restore chunks and channels from the latest snapshot, and return the worker's progress.

        If there is no snapshot, do nothing and return None.
        """
        if not self._file.exists():
            return None
        # Unpickling is safe here: a worker of this run wrote the bytes.
        state: Any = pickle.loads(self._file.read_bytes())
        assert isinstance(state, _State)
        self._current, self._covered = state.buffer, state.sent
        restore(chunks.values(), self._buffers[state.buffer].read(state.layout))
        for number, chunk in chunks.items():
            norm = state.norms[number]
            chunk.squared_norm = None if norm is None else norm.to(chunk.device)
            chunk.sums = _on(state.sums[number], chunk.device)
        for channel, (messages, size) in state.sent.items():
            self._senders[channel].position, self._senders[channel].bytes_sent = messages, size
        for channel, messages in state.received.items():
            self._receivers[channel].go_back(messages)
        others, torch_state = state.random
        restore_random_states(others)
        torch.set_rng_state(torch_state)
        return replace(state.progress, trace=pickle.loads(state.trace))


def _on(sums: Mapping[str, Sums], device: torch.device) -> dict[str, Sums]:
    found = {}
    for split, each in sums.items():
        loss = each.loss.to(device) if isinstance(each.loss, Tensor) else each.loss
        # Clone, because a tensor may be a small view, and pickle would write its whole storage.
        rows = [each.rows.to(device).clone()] if each.measures else []
        found[split] = Sums(loss, int(each.samples), rows)
    return found


class _Buffer:
    def __init__(self, path: Path) -> None:
        self._path = path
        # Reused by later snapshots, because allocating memory takes longer than copying.
        self._memory = torch.empty(0, dtype=torch.uint8)

    def fill(self, tensors: Mapping[str, Tensor]) -> Layout:
        layout = layout_of(tensors)
        size = layout_bytes(layout)
        if size > self._memory.numel():
            with self._path.open("ab") as file:
                # Without this, a write to full shared memory would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
        for name, view in self._views(layout).items():
            view.copy_(tensors[name].detach())
        return layout

    def read(self, layout: Layout) -> dict[str, Tensor]:
        return {name: view.clone() for name, view in self._views(layout).items()}

    def _views(self, layout: Layout) -> dict[str, Tensor]:
        size = layout_bytes(layout)
        if size > self._memory.numel():
            path = str(self._path)
            self._memory = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        return Slots(HostMemory(self._memory, pinned=False), 1, size).at(0, layout)
