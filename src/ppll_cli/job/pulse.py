"""Shared memory in which each worker shows its parent that it is alive, and its progress.

Each worker writes two times of the monotonic clock, which all processes of a machine share:

- The last sign of life. A separate thread renews it every second, unless the process is stopped
  (SIGSTOP).
- The last progress. The main thread renews it with each instruction. It also renews it while it
  waits for another stage: if that stage hangs, this worker is not to blame.
"""

import ctypes
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from time import monotonic
from typing import Any

from ppll_cli.observe.progress import KINDS, Look

ALIVE_LIMIT_S = 6.0
"""Seconds without a sign of life after which the parent regards a worker as stopped.

The parent must notice a stopped process within 10 s, even if it checks 3 s late.
"""

STARTING_ALIVE_LIMIT_S = 60.0
"""The limit in seconds that replaces `ALIVE_LIMIT_S` until the worker has ended its first batch.

The thread of the signs of life needs Python's global interpreter lock. The main thread can hold
this lock for many seconds while CUDA starts on a device, or maps the memory of another device. This
happens only before the end of the first batch.
"""

FORKED_LIMIT_S = 60.0
"""Seconds that a worker may take from its start, including imports, to its first sign of life."""

SCORING_LIMIT_S = 900.0
"""Seconds that a worker may take to compute the metrics of a split; detection takes long."""

STARTING_LIMIT_S = 900.0
"""Seconds that a worker may take to set up its networks, data and connections."""

SAVING_LIMIT_S = 900.0
"""Seconds that a worker may take to write its file of a checkpoint."""

COMPILING_LIMIT_S = 3600.0
"""Seconds that an instruction may take if `compile=true`, because it may compile a network."""

BEAT_S = 1.0
"""Seconds between two signs of life."""

_OWN_GAP_S = 3.0
"""Limit in seconds for the time between two checks of the workers, which usually is 1 s.

If the time is longer, the parent itself was stopped. The excess is not counted against the
workers.
"""

_TEXT = 200
"""Size of each text field in bytes, including the final zero."""


class Pulse(ctypes.Structure):
    """The state of a worker, in memory that the worker writes and its parent reads."""

    alive_s: float  # monotonic time of the last sign of life; 0 before the first one
    progress_s: float  # monotonic time of the main thread's last progress
    limit_s: float  # seconds that may pass without progress in this activity; 0 for no limit
    started: bool  # whether the worker has ended its first batch, of training or evaluation
    doing: bytes  # name of the current activity
    item: bytes  # name of the batch or mark (see `job.course`) that the activity is part of
    step: int  # number of optimizer steps done
    sent: int  # number of messages sent with activations or marks
    received: int  # number of messages received with activations or marks
    memory_bytes: int  # memory that the worker uses; -1 if unknown
    counted_s: float  # seconds of the steady state so far
    spent_s: MutableSequence[float]  # seconds of `counted_s` by kind, in the order of `KINDS`

    def beat(self, memory_bytes: int | None = None) -> None:
        """Renew the sign of life, and record the memory that the process uses; None if unknown."""
        self.alive_s = monotonic()
        self.memory_bytes = -1 if memory_bytes is None else memory_bytes

    def renew_progress(self) -> None:
        """Record that the main thread has made progress within the current activity."""
        self.progress_s = monotonic()

    def begin(self, doing: str, limit_s: float | None) -> None:
        """Record that the main thread begins an activity.

        The activity may take `limit_s` seconds without progress; None for no limit.
        """
        self.doing = doing.encode()[: _TEXT - 1]
        self.progress_s = monotonic()  # set before the limit: see `Watchdog.late`
        self.limit_s = limit_s or 0.0

    def start_again(self) -> None:
        """Prepare this memory for the first process of the worker, or for a new one."""
        self.alive_s, self.started, self.item = 0.0, False, b""
        self.begin("starting", FORKED_LIMIT_S)

    def take(self, item: str) -> None:
        """Record the batch or mark to which the next activities belong."""
        self.item = item.encode()[: _TEXT - 1]

    def spend(self, counted_s: float, spent_s: Mapping[str, float]) -> None:
        """Record how long the steady state has lasted, and how much of it each of `KINDS` took."""
        self.counted_s = counted_s
        for index, kind in enumerate(KINDS):
            self.spent_s[index] = spent_s.get(kind, 0.0)

    def look(self) -> Look:
        """Return the worker's progress at this moment."""
        return Look(
            self.step,
            self.sent,
            self.received,
            None if self.memory_bytes < 0 else self.memory_bytes,
            self.counted_s,
            dict(zip(KINDS, self.spent_s, strict=True)),
        )

    def show(self, memory: bytes) -> None:
        """Make this pulse a copy of a pulse on another machine, whose bytes are `memory`.

        Raises:
            ValueError: There are too few bytes: they come from another version of this class.
        """
        ctypes.pointer(self)[0] = Pulse.from_buffer_copy(memory)

    def texts(self) -> tuple[str, str]:
        """Return the name of the current activity, and the batch or mark to which it belongs."""
        return self.doing.decode(errors="replace"), self.item.decode(errors="replace")

    def __str__(self) -> str:
        doing, item = self.texts()
        return f"{doing} of {item}" if item else doing or "starting"


_IN_C: Mapping[object, type[Any]] = {
    float: ctypes.c_double,
    int: ctypes.c_int64,
    bool: ctypes.c_bool,
    bytes: ctypes.c_char * _TEXT,
    MutableSequence[float]: ctypes.c_double * len(KINDS),
}
Pulse._fields_ = [(name, _IN_C[kind]) for name, kind in Pulse.__annotations__.items()]


class Watchdog:
    """Finds workers that hang or are stopped. The parent process of the workers uses it."""

    def __init__(self, pulses: Sequence[Pulse]) -> None:
        self._pulses = pulses
        self._looked_s = monotonic()
        # For each worker, the times from which silence and lack of progress are counted.
        self._since_s = [(self._looked_s, self._looked_s) for _ in pulses]

    def late(self) -> Iterator[tuple[int, str]]:
        """Yield the index of each worker that is silent or stuck, and the problem in words."""
        now = monotonic()
        stopped_s = max(0.0, now - self._looked_s - _OWN_GAP_S)  # how long this process was stopped
        self._looked_s = now
        for worker, pulse in enumerate(self._pulses):
            # A worker that begins an activity sets the time and then the limit. So read the limit
            # first, and only here: a new limit must not be compared with an old time.
            progress_limit_s = pulse.limit_s
            turned_s = pulse.alive_s, pulse.progress_s
            alive_s, progress_s = (
                min(max(turned, since) + stopped_s, now)
                for turned, since in zip(turned_s, self._since_s[worker], strict=True)
            )
            self._since_s[worker] = alive_s, progress_s
            silent_s, stuck_s = now - alive_s, now - progress_s
            limit_s = ALIVE_LIMIT_S if pulse.started else STARTING_ALIVE_LIMIT_S
            if pulse.alive_s and silent_s > limit_s:
                yield worker, f"the worker process is stopped: no sign of life for {silent_s:.0f} s"
            elif progress_limit_s and stuck_s > progress_limit_s:
                problem = f"no progress for {stuck_s:.0f} s; the limit is {progress_limit_s:g} s"
                yield worker, problem
