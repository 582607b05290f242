"""Where a stage's time goes, in the steady state.

A run is made of segments: training batches with no evaluation or checkpoint between them. The first
batches of a process are left out (warm-up), and of each segment so many that what had been waiting
in the channels upstream is used up: it was made while this stage did something else, and would make
it look faster than it is.

The first batches that are counted can be traced as well: span by span, as a timeline shows them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import torch

from ppll_cli.observe.timeline import Span
from ppll_cli.schedules.instructions import Instruction


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


class Recorder:
    """Measures spans of a stage's time.

    Args:
        device: Where the stage computes. What is queued on a CUDA device is timed by events there.
        warmup: Batches to leave out at the start of the process.
        skip: Batches to leave out at the start of each segment.
        on_steady: Called once, when the steady state begins.
        traced: How many batches in a row to trace; fewer where no segment has so many.

    Attributes:
        totals: What was counted.
        trace: What was traced, in the order in which it ended.
    """

    def __init__(
        self,
        device: torch.device,
        warmup: int,
        skip: int,
        on_steady: Callable[[], None],
        traced: int = 0,
    ) -> None:
        self.totals = Totals()
        self.trace: list[Span] = []
        self._most_traced = self._in_trace = 0
        self._trace: list[Span] = []
        self._traced = traced
        self._step = 0
        self._cuda = device if device.type == "cuda" else None
        self._warmup, self._skip, self._on_steady = warmup, skip, on_steady
        self._seen = 0
        self._in_segment = 0
        self._counting_since: float | None = None
        self._events: list[_Queued] = []
        self._zero: tuple[float, torch.cuda.Event] | None = None
        self._collected_s = 0.0

    def begin_batch(self, step: int) -> None:
        """A training batch begins, after so many optimizer steps; its header is there."""
        self._step = step
        if self._counting_since is None and (
            self._seen >= self._warmup and self._in_segment >= min(self._skip, self._seen)
        ):
            if self.totals.batches == 0:
                self._on_steady()
            self._counting_since = self._now()
            self._begin_trace()

    def end_batch(self, samples: int) -> None:
        """The training batch ends."""
        self._seen += 1
        self._in_segment += 1
        if self._counting_since is not None:
            self.totals.batches += 1
            self.totals.samples += samples
            if self._tracing:
                self._in_trace += 1
                if not self._tracing:
                    self._end_trace()

    def end_segment(self) -> None:
        """Something else than a training batch begins."""
        if self._counting_since is not None:
            self.totals.wall_s += self._now() - self._counting_since
            self._counting_since = None
            self.collect()
            self._end_trace()
        self._in_segment = 0

    @property
    def counted_s(self) -> float:
        """How long the batches took of which the totals know what was done in that time."""
        if self._events:
            return self._collected_s
        since = self._counting_since
        return self.totals.wall_s + (0.0 if since is None else perf_counter() - since)

    def waiting(self, kind: str) -> AbstractContextManager[None]:
        """Time in which the device, for want of anything to do, waits for another stage."""
        return self._span(kind, None)

    def working(self, kind: str, instruction: Instruction) -> AbstractContextManager[None]:
        """Time in which the device works for an instruction."""
        return self._span(kind, instruction)

    def collect(self) -> None:
        """Add up what the device has done so far; on CUDA this waits for it."""
        if self._events:
            self._events[-1].last.synchronize()
        for kind, instruction, first, last, step, traced in self._events:
            self._add(kind, instruction, first.elapsed_time(last) / 1000)
            if traced:
                assert self._zero is not None
                zero_s, zero = self._zero
                start_s, end_s = (
                    zero_s + zero.elapsed_time(event) / 1000 for event in (first, last)
                )
                self._trace.append(Span(start_s, end_s, kind, instruction, step))
        self._events.clear()
        self._collected_s = self.counted_s

    @contextmanager
    def _span(self, kind: str, instruction: Instruction | None) -> Iterator[None]:
        if self._counting_since is None:
            yield
        elif self._cuda is None:
            start_s = perf_counter()
            yield
            end_s = perf_counter()
            self._add(kind, instruction, end_s - start_s)
            if self._tracing:
                self._trace.append(Span(start_s, end_s, kind, instruction, self._step))
        else:
            first, last = _event(), _event()
            first.record()
            yield
            last.record()
            self._events.append(_Queued(kind, instruction, first, last, self._step, self._tracing))

    @property
    def _tracing(self) -> bool:
        return self._in_trace < self._traced

    def _begin_trace(self) -> None:
        """A segment's counted batches begin; it may have more of them than those before."""
        self._trace = []
        self._in_trace = 0 if self._most_traced < self._traced else self._traced
        if self._cuda is not None and self._tracing:
            self._zero = perf_counter(), _event()  # the device is idle now
            self._zero[1].record()

    def _end_trace(self) -> None:
        self.collect()
        if self._in_trace > self._most_traced:
            self.trace, self._most_traced = self._trace, self._in_trace
        self._in_trace = self._traced

    def _add(self, kind: str, instruction: Instruction | None, seconds: float) -> None:
        self.totals.spent_s[kind] += seconds
        if instruction is not None:
            self.totals.instruction_s[instruction] += seconds

    def _now(self) -> float:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return perf_counter()


class _Queued(NamedTuple):
    """A span on a CUDA device, of which the times are not known yet."""

    kind: str
    instruction: Instruction | None
    first: torch.cuda.Event
    last: torch.cuda.Event
    step: int
    traced: bool


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
