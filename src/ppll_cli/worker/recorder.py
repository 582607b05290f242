"""Measures how a stage spends its time in the steady state.

A segment is a sequence of training batches without an evaluation or checkpoint between them. The
first batches of a process (warm-up) are not counted. The first batches of a segment are not counted
either: their inputs arrived while the stage evaluated or saved a checkpoint, so the stage would
look faster than it is.

A trace lists when each instruction and each wait of some consecutive batches began and ended.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ppll_cli.observe.spans import Span
from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.worker.clock import Clock

KINDS: dict[type, str] = {
    do.NextBatch: "data",
    do.Forward: "compute",
    do.Loss: "compute",
    do.Backward: "compute",
    do.BackwardInput: "compute",
    do.BackwardWeight: "compute",
    do.StartAverage: "average",
    do.FinishAverage: "average",
    do.AddNorms: "optimizer",
    do.ReadWeights: "auxiliary",
    do.Step: "optimizer",
}
"""Kind of time to which an instruction's duration is added. `Mail` records sends and receives."""


@dataclass
class Totals:
    """Counts and times of a stage in the steady state.

    Attributes:
        wall_s: Seconds that the training batches took in total.
        spent_s: Seconds of each kind of time; `progress.KINDS` has the kinds.
        instruction_s: Seconds spent on each instruction, without waiting.
    """

    batches: int = 0
    samples: int = 0
    wall_s: float = 0.0
    spent_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    instruction_s: dict[Instruction, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class _Trace:
    since: Any  # the moment from which the times of `spans` are counted
    batches: int = 0
    spans: list[Span] = field(default_factory=list)


class _Queued(NamedTuple):
    # An interval whose length is not known yet: an instruction, a wait, or a whole segment.
    kind: str | None  # None for a segment
    instruction: Instruction | None  # None for a wait or a segment
    first: Any  # the moment when the interval began
    last: Any  # the moment when the interval ended
    step: int  # optimizer steps done before this batch; for a segment, before its last batch
    since: Any  # the moment when the counted part of the segment began
    trace: _Trace | None  # the trace to which the interval is added


class Recorder:
    """Measures a stage's time without waiting for the device in the steady state.

    On CUDA, the device may finish work long after the worker has queued it. Times are added when
    the work is finished. Only `settle` and `so_far` wait for the device. Call them when the worker
    has to wait anyway, for example at a checkpoint.

    Args:
        clock: The clock of the stage's device.
        warmup: Number of batches not counted at the start of the process.
        skip: Number of batches not counted at the start of each segment (see the module).
        on_steady: Called once, when the steady state begins.
        traced: Number of consecutive batches to trace; fewer if every segment is shorter.
        auxiliary: Numbers of the chunks whose losses count as time of the kind "auxiliary".

    Attributes:
        totals: Counts of the steady state, and the times of its finished work.
        trace: The traced spans, on the host's clock, in the order of their ends; set by `settle`.
        counted_s: Seconds from the beginning of the steady state to the last work in `totals`,
            without the batches that are not counted.
    """

    def __init__(
        self,
        clock: Clock,
        warmup: int,
        skip: int,
        on_steady: Callable[[], None],
        traced: int = 0,
        auxiliary: Container[int] = (),
    ) -> None:
        self._auxiliary = auxiliary
        self.totals = Totals()
        self.trace: list[Span] = []
        self.counted_s = 0.0
        self._clock = clock
        self._warmup, self._skip, self._on_steady, self._traced = warmup, skip, on_steady, traced
        self._step = self._seen = self._in_segment = self._most_traced = 0
        self._steady = False
        self._since: Any = None  # when the counted part of the segment began
        self._trace: _Trace | None = None  # the trace of the current segment
        self._longest: _Trace | None = None  # the longest trace that has ended
        self._unread: deque[_Queued] = deque()

    def begin_batch(self, step: int) -> None:
        """Record that a training batch begins, after `step` optimizer steps."""
        self._step = step
        if self._since is None and (
            self._seen >= self._warmup and self._in_segment >= min(self._skip, self._seen)
        ):
            if not self._steady:
                self._steady = True
                self._on_steady()
            self._since = self._clock.mark()
            if self._most_traced < self._traced:
                self._trace = _Trace(self._since)

    def end_batch(self, samples: int) -> None:
        """Record that the training batch ends; this worker computed `samples` samples of it."""
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
        """End the segment, before an evaluation or a checkpoint."""
        if self._since is not None:
            self._end_trace()
            last = self._clock.mark()
            ended = _Queued(None, None, self._since, last, self._step, self._since, None)
            self._unread.append(ended)
            self._since = None
            self.collect()
        self._in_segment = 0

    @contextmanager
    def span(self, kind: str, instruction: Instruction | None = None) -> Iterator[None]:
        """Measure the time that the device takes for the body of the `with` statement.

        Args:
            kind: The kind of time to which the measured time is added, from `progress.KINDS`.
            instruction: The instruction that the body executes; None for a wait or other work.
        """
        since = self._since
        if since is None:
            yield
            return
        first = self._clock.mark()
        yield
        last = self._clock.mark()
        self._unread.append(_Queued(kind, instruction, first, last, self._step, since, self._trace))

    def executing(self, instruction: Instruction) -> AbstractContextManager[None]:
        """Return a context manager that measures an instruction if `KINDS` has its type."""
        kind = KINDS.get(type(instruction))
        if isinstance(instruction, do.Loss) and instruction.chunk in self._auxiliary:
            kind = "auxiliary"
        return nullcontext() if kind is None else self.span(kind, instruction)

    def collect(self) -> None:
        """Add the times of the work that the device has finished."""
        while self._unread and self._clock.passed(self._unread[0].last):
            self._read(self._unread.popleft())

    def settle(self) -> None:
        """Wait for the device, add up all times, and finish the trace."""
        if self._unread:
            self._clock.wait(self._unread[-1].last)
        self.collect()
        if self._longest is not None:
            zero_s = self._clock.host_s(self._longest.since)
            self.trace = [span.later(zero_s) for span in self._longest.spans]
            self._longest = None

    def so_far(self) -> Totals:
        """Wait for the device, and return a copy of the totals up to now."""
        self.settle()
        found = deepcopy(self.totals)
        if self._since is not None:
            now = self._clock.mark()
            self._clock.wait(now)
            found.wall_s += self._clock.seconds(self._since, now)
            self._clock.free(now)
        return found

    def continue_from(self, totals: Totals, trace: list[Span]) -> None:
        """Begin with what the worker's earlier process measured before a restart.

        Args:
            totals: What `so_far` returned there.
            trace: The trace made there. If it is not empty, no new trace is made.
        """
        self.totals, self.counted_s, self.trace = totals, totals.wall_s, trace
        if trace:  # a new trace would show other batches than the traces of the other stages
            self._traced = 0

    def _read(self, queued: _Queued) -> None:
        kind, instruction, first, last, step, since, trace = queued
        seconds = self._clock.seconds
        if kind is None:
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
        if self._trace is not None and self._trace.batches > self._most_traced:
            self._longest, self._most_traced = self._trace, self._trace.batches
        self._trace = None
