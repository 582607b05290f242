"""What a trace of a run contains: intervals of the stages' time, and restarts of workers."""

from collections.abc import Sequence
from typing import NamedTuple

from ppll_cli.pipeline.instructions import Forward, Instruction, Loss

SHOWN = 4
"""`timeline.png` ends when the slowest stage has computed this number of batches."""


class Span(NamedTuple):
    """An interval of a stage's time.

    Attributes:
        start_s: Start, in seconds on a clock that all stages share.
        end_s: End, on the same clock.
        kind: What the stage did, one of `progress.KINDS`.
        instruction: The instruction that the stage executed; None if there was none.
        step: Optimizer steps done before the batch on which the stage worked.
    """

    start_s: float
    end_s: float
    kind: str
    instruction: Instruction | None
    step: int

    def later(self, seconds: float) -> "Span":
        """Return this span, moved to a later time."""
        return self._replace(start_s=self.start_s + seconds, end_s=self.end_s + seconds)

    @property
    def category(self) -> str:
        """What the stage did, as a key of `timeline_picture.COLOURS`, such as "forward"."""
        if self.kind in ("starved", "blocked"):
            return "idle"
        if self.kind == "compute":
            return "forward" if isinstance(self.instruction, Forward | Loss) else "backward"
        if self.kind == "transfer":
            sends = type(self.instruction).__name__.startswith("Send")
            return "send" if sends else "receive"
        return self.kind


Lanes = Sequence[Sequence[Span]]
"""The spans of each worker. A worker that failed before its trace was complete has none."""


class Restart(NamedTuple):
    """A restart of a worker with `recover=stage`.

    Attributes:
        worker: Index of the worker in `Traced.lanes`.
        start_s: When the launcher detected the failure, on the clock of `Span.start_s`.
        end_s: When the new worker went on with the work, or failed too; on the same clock.
        error: The message of the failure.
        phase: What the worker did when it failed.
        batch: Text that names the batch, evaluation or checkpoint at which the worker failed; None
            if the worker was starting.
    """

    worker: int
    start_s: float
    end_s: float
    error: str
    phase: str
    batch: str | None

    def later(self, seconds: float) -> "Restart":
        """Return this restart, moved to a later time."""
        return self._replace(start_s=self.start_s + seconds, end_s=self.end_s + seconds)

    @property
    def span(self) -> Span:
        """The restart as a span, for the timeline and its picture."""
        return Span(self.start_s, self.end_s, "restart", None, 0)


class Traced(NamedTuple):
    """What a timeline shows.

    Attributes:
        lanes: The spans of each worker, with replicas of a stage next to one another.
        names: The name of each worker, which tells its stage and replica.
    """

    lanes: Lanes
    names: Sequence[str]
    devices: Sequence[str]
    title: str
    replicas: int = 1
    restarts: Sequence[Restart] = ()
