"""Where a stage's time goes, in the steady state.

A run is made of segments: training batches with no evaluation or checkpoint between them. The first
batches of a process are left out (warm-up), and of each segment so many that what had been waiting
in the channels upstream is used up: it was made while this stage did something else, and would make
it look faster than it is.

The first batches that are counted can be traced as well: span by span, as a timeline shows them.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ppll_cli.observe.timeline import Span
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.worker.clock import Clock


@dataclass
class Totals:
    """What was counted in the steady state of a stage.

    Attributes:
        batches: How many training batches.
        samples: How many samples they had.
        wall_s: How long they took together.
        spent_s: By kind, one of `progress.KINDS`.
        instruction_s: By instruction, the time it took without waiting.
    """

    batches: int = 0
    samples: int = 0
    wall_s: float = 0.0
    spent_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    instruction_s: dict[Instruction, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class _Trace:
    """The first counted batches of a segment, span by span.

    Attributes:
        since: The moment when they began.
        batches: How many there are.
        spans: What was done, in seconds since that moment.
    """

    since: Any
    batches: int = 0
    spans: list[Span] = field(default_factory=list)


class _Queued(NamedTuple):
    """A span whose times are not read yet; the kind of a whole segment is None."""

    kind: str | None
    instruction: Instruction | None
    first: Any
    last: Any
    step: int
    since: Any
    trace: _Trace | None


class Recorder:
    """Measures spans of a stage's time, without waiting for the device in the steady state.

    A span's two moments are read when the device has passed them, at the end of a later batch; so
    is the time of a segment. `settle` waits for all of them, where a mark waits for the device
    anyway: at an evaluation's metrics, a checkpoint and the end.

    Args:
        clock: Of the device on which the stage computes.
        warmup: Batches to leave out at the start of the process.
        skip: Batches to leave out at the start of each segment.
        on_steady: Called once, when the steady state begins.
        traced: How many batches in a row to trace; fewer where no segment has so many.

    Attributes:
        totals: What was counted. Batches and samples are counted at once, times as they are read.
        trace: What was traced, in the order in which it ended; complete after `settle`.
        counted_s: The time of the steady state that `totals` describes.
    """

    def __init__(
        self,
        clock: Clock,
        warmup: int,
        skip: int,
        on_steady: Callable[[], None],
        traced: int = 0,
    ) -> None:
        self.totals = Totals()
        self.trace: list[Span] = []
        self.counted_s = 0.0
        self._clock = clock
        self._warmup, self._skip, self._on_steady, self._traced = warmup, skip, on_steady, traced
        self._step = self._seen = self._in_segment = self._most_traced = 0
        self._since: Any = None  # the moment when the counted part of this segment began
        self._trace: _Trace | None = None  # of the segment in hand
        self._longest: _Trace | None = None  # to be placed on the host's clock
        self._unread: deque[_Queued] = deque()

    def begin_batch(self, step: int) -> None:
        """A training batch begins, after so many optimizer steps; its header is there."""
        self._step = step
        if self._since is None and (
            self._seen >= self._warmup and self._in_segment >= min(self._skip, self._seen)
        ):
            if self.totals.batches == 0:
                self._on_steady()
            self._since = self._clock.mark()
            if self._most_traced < self._traced:
                self._trace = _Trace(self._since)

    def end_batch(self, samples: int) -> None:
        """The training batch ends."""
        self._seen += 1
        self._in_segment += 1
        if self._since is not None:
            self.totals.batches += 1
            self.totals.samples += samples
            if self._trace is not None:
                self._trace.batches += 1
                if self._trace.batches == self._traced:
                    self._end_trace()
        self.collect()

    def end_segment(self) -> None:
        """Something else than a training batch begins."""
        if self._since is not None:
            self._end_trace()
            last = self._clock.mark()
            ended = _Queued(None, None, self._since, last, self._step, self._since, None)
            self._unread.append(ended)
            self._since = None
            self.collect()
        self._in_segment = 0

    def waiting(self, kind: str) -> AbstractContextManager[None]:
        """Time in which the device, for want of anything to do, waits for another stage."""
        return self._span(kind, None)

    def working(self, kind: str, instruction: Instruction) -> AbstractContextManager[None]:
        """Time in which the device works for an instruction."""
        return self._span(kind, instruction)

    def collect(self) -> None:
        """Add up what the device has done so far."""
        while self._unread and self._clock.passed(self._unread[0].last):
            self._read(self._unread.popleft())

    def settle(self) -> None:
        """Wait for the device, add up everything, and finish the trace."""
        if self._unread:
            self._clock.wait(self._unread[-1].last)
        self.collect()
        if self._longest is not None:
            zero_s = self._clock.host_s(self._longest.since)
            self.trace = [span.later(zero_s) for span in self._longest.spans]
            self._longest = None

    @contextmanager
    def _span(self, kind: str, instruction: Instruction | None) -> Iterator[None]:
        since = self._since
        if since is None:
            yield
            return
        first = self._clock.mark()
        yield
        last = self._clock.mark()
        self._unread.append(_Queued(kind, instruction, first, last, self._step, since, self._trace))

    def _read(self, queued: _Queued) -> None:
        kind, instruction, first, last, step, since, trace = queued
        seconds = self._clock.seconds
        if kind is None:  # a segment
            self.totals.wall_s += seconds(first, last)
            self.counted_s = self.totals.wall_s
            return
        taken_s = seconds(first, last)
        self.totals.spent_s[kind] += taken_s
        if instruction is not None:
            self.totals.instruction_s[instruction] += taken_s
        self.counted_s = self.totals.wall_s + seconds(since, last)
        if trace is not None:
            start_s, end_s = seconds(since, first), seconds(since, last)
            trace.spans.append(Span(start_s, end_s, kind, instruction, step))
        self._clock.free(first)
        self._clock.free(last)

    def _end_trace(self) -> None:
        """No more of this segment is traced; keep it if it has more batches than those before."""
        if self._trace is not None and self._trace.batches > self._most_traced:
            self._longest, self._most_traced = self._trace, self._trace.batches
        self._trace = None
