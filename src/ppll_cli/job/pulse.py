"""What the parent sees of each worker, in shared memory: two clocks, and how far it is.

A thread of the worker turns the first one; a process that is stopped turns none. Its main thread
turns the second one with each instruction, and while it waits for another stage: whoever waits is
not the one that hangs. Times are of the monotonic clock, which all processes share.

That thread needs Python's lock. While CUDA starts on a device, or opens the memory of another one,
the main thread can hold the lock for many seconds. So a worker may be silent for much longer until
its first batch has ended, and with it all that CUDA does only once.
"""

import ctypes
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from time import monotonic

from ppll_cli.observe.progress import KINDS, Look

ALIVE_LIMIT_S = 6.0
"""After so long without a sign of life a process is stopped, or its machine is far too busy. The
parent is to find it within 10 s, also where it looks three seconds too late."""

STARTING_ALIVE_LIMIT_S = 60.0
"""The same until the first batch of the process has ended."""

FORKED_LIMIT_S = 60.0
"""A process is there, but shows that it lives only when it has imported what describes its job."""

SCORING_LIMIT_S = 900.0
"""Computing metrics of a whole split, which for detection is much more than adding up."""

STARTING_LIMIT_S = 900.0
SAVING_LIMIT_S = 900.0
COMPILING_LIMIT_S = 3600.0

BEAT_S = 1.0

_OWN_GAP_S = 3.0
"""The parent looks every second. Of a longer gap than this, the rest does not count: the parent was
stopped itself, perhaps with its workers."""

_TEXT = 200


class Pulse(ctypes.Structure):
    """A worker's clocks, and what it does.

    Attributes:
        alive_s: When it last showed that it lives; 0 before it first did.
        started: Whether its first batch, of training or evaluation, has ended.
        progress_s: When it last got on.
        limit_s: How long it may take for what it does; 0 for ever.
        doing: What it does.
        item: For which batch or mark.
        step: Optimizer steps done.
        sent: Messages sent to the next stage.
        received: Messages received from the stage before.
        memory_bytes: How much memory it uses; -1 where that is unknown.
        counted_s: Of the steady state, as far as what was done in it is known.
        spent_s: On each of `KINDS`, in that time.
    """

    _fields_ = (
        ("alive_s", ctypes.c_double),
        ("progress_s", ctypes.c_double),
        ("limit_s", ctypes.c_double),
        ("started", ctypes.c_bool),
        ("doing", ctypes.c_char * _TEXT),
        ("item", ctypes.c_char * _TEXT),
        ("step", ctypes.c_int64),
        ("sent", ctypes.c_int64),
        ("received", ctypes.c_int64),
        ("memory_bytes", ctypes.c_int64),
        ("counted_s", ctypes.c_double),
        ("spent_s", ctypes.c_double * len(KINDS)),
    )
    alive_s: float
    progress_s: float
    limit_s: float
    started: bool
    doing: bytes
    item: bytes
    step: int
    sent: int
    received: int
    memory_bytes: int
    counted_s: float
    spent_s: MutableSequence[float]

    def beat(self, memory_bytes: int | None = None) -> None:
        """The process lives, and uses so much memory."""
        self.alive_s = monotonic()
        self.memory_bytes = -1 if memory_bytes is None else memory_bytes

    def get_on(self) -> None:
        """The main thread gets on with what it does."""
        self.progress_s = monotonic()

    def begin(self, doing: str, limit_s: float | None) -> None:
        """The main thread begins something else, for which it may take so long."""
        self.doing = doing.encode()[: _TEXT - 1]
        self.limit_s = limit_s or 0.0
        self.progress_s = monotonic()

    def take(self, item: str) -> None:
        """What follows is for this batch or mark."""
        self.item = item.encode()[: _TEXT - 1]

    def spend(self, counted_s: float, spent_s: Mapping[str, float]) -> None:
        """The steady state has lasted so long, and was spent on this."""
        self.counted_s = counted_s
        for index, kind in enumerate(KINDS):
            self.spent_s[index] = spent_s.get(kind, 0.0)

    def look(self) -> Look:
        """How far the worker is."""
        return Look(
            self.step,
            self.sent,
            self.received,
            None if self.memory_bytes < 0 else self.memory_bytes,
            self.counted_s,
            dict(zip(KINDS, self.spent_s, strict=True)),
        )

    def __str__(self) -> str:
        doing, item = (text.decode(errors="replace") for text in (self.doing, self.item))
        return f"{doing} of {item}" if item else doing or "starting"


class Watch:
    """The parent's look at the clocks.

    Args:
        pulses: Of all workers.
    """

    def __init__(self, pulses: Sequence[Pulse]) -> None:
        self._pulses = pulses
        self._looked_s = monotonic()
        # For each worker: since when the clocks of its life and of its progress have stood still.
        self._since_s = [(self._looked_s, self._looked_s) for _ in pulses]

    def late(self) -> Iterator[tuple[int, str]]:
        """The workers whose clocks stand still, and what is to be said of them."""
        now = monotonic()
        stopped_s = max(0.0, now - self._looked_s - _OWN_GAP_S)  # this process itself
        self._looked_s = now
        for worker, pulse in enumerate(self._pulses):
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
            elif pulse.limit_s and stuck_s > pulse.limit_s:
                yield worker, f"no progress for {stuck_s:.0f} s; the limit is {pulse.limit_s:g} s"
