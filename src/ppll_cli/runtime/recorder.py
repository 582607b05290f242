"""Where a stage's time goes, in the steady state.

A run is made of segments: training batches with no evaluation or checkpoint between them. The first
batches of a process are left out (warm-up), and of each segment so many that what had been waiting
in the channels upstream is used up: it was made while this stage did something else, and would make
it look faster than it is.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch

from ppll_cli.schedules.instructions import Instruction


@dataclass
class Totals:
    """What was counted in the steady state of a stage.

    Attributes:
        batches: How many training batches.
        samples: How many samples they had.
        wall_s: How long they took together.
        spent_s: By kind ("compute", "auxiliary", "starved", "blocked", "data", "transfer").
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
    """

    def __init__(
        self, device: torch.device, warmup: int, skip: int, on_steady: Callable[[], None]
    ) -> None:
        self.totals = Totals()
        self._cuda = device if device.type == "cuda" else None
        self._warmup, self._skip, self._on_steady = warmup, skip, on_steady
        self._seen = 0
        self._in_segment = 0
        self._counting_since: float | None = None
        self._events: list[tuple[str, Instruction | None, torch.cuda.Event, torch.cuda.Event]] = []

    def begin_batch(self) -> None:
        """A training batch begins; its header is there."""
        if self._counting_since is None and (
            self._seen >= self._warmup and self._in_segment >= min(self._skip, self._seen)
        ):
            if self.totals.batches == 0:
                self._on_steady()
            self._counting_since = self._now()

    def end_batch(self, samples: int) -> None:
        """The training batch ends."""
        self._seen += 1
        self._in_segment += 1
        if self._counting_since is not None:
            self.totals.batches += 1
            self.totals.samples += samples

    def end_segment(self) -> None:
        """Something else than a training batch begins."""
        if self._counting_since is not None:
            self.totals.wall_s += self._now() - self._counting_since
            self._counting_since = None
            self.collect()
        self._in_segment = 0

    def waiting(self, kind: str) -> AbstractContextManager[None]:
        """Time in which the device, for want of anything to do, waits for another stage."""
        return self._span(kind, None)

    def working(self, kind: str, instruction: Instruction) -> AbstractContextManager[None]:
        """Time in which the device works for an instruction."""
        return self._span(kind, instruction)

    def collect(self) -> None:
        """Add up what the device has done so far; on CUDA this waits for it."""
        if self._events:
            self._events[-1][-1].synchronize()
        for kind, instruction, first, last in self._events:
            self._add(kind, instruction, first.elapsed_time(last) / 1000)
        self._events.clear()

    @contextmanager
    def _span(self, kind: str, instruction: Instruction | None) -> Iterator[None]:
        if self._counting_since is None:
            yield
        elif self._cuda is None:
            start = perf_counter()
            yield
            self._add(kind, instruction, perf_counter() - start)
        else:
            first, last = _event(), _event()
            first.record()
            yield
            last.record()
            self._events.append((kind, instruction, first, last))

    def _add(self, kind: str, instruction: Instruction | None, seconds: float) -> None:
        self.totals.spent_s[kind] += seconds
        if instruction is not None:
            self.totals.instruction_s[instruction] += seconds

    def _now(self) -> float:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return perf_counter()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
