"""Computes the progress of a run from the states of its workers."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = (
    "compute",
    "auxiliary",
    "optimizer",
    "starved",
    "blocked",
    "data",
    "transfer",
    "average",
    "snapshot",
)
"""The kinds of work and waiting into which a stage's time is divided."""

FRACTIONS = {"compute": ("compute", "optimizer"), "aux": ("auxiliary",)}
FRACTIONS |= {kind: (kind,) for kind in ("starved", "blocked", "data", "transfer", "average")}
"""For each fraction of a stage's time in `summary.json`, the `KINDS` whose times it adds up."""

WINDOW_S = 10.0
"""Length, in seconds, of the recent time over which speeds and fractions are measured."""


class Look(NamedTuple):
    """The state of a worker at one moment.

    Attributes:
        step: Optimizer steps done.
        sent: Messages sent to the next stage.
        received: Messages received from the previous stage.
        memory_bytes: Memory that the worker uses; None if unknown.
        counted_s: Length of the steady state so far, in seconds.
        spent_s: Seconds of the steady state spent on each of `KINDS`.
        restarts: Whether the worker has failed and is being started again.
    """

    step: int
    sent: int
    received: int
    memory_bytes: int | None
    counted_s: float
    spent_s: Mapping[str, float]
    restarts: bool = False


@dataclass(frozen=True)
class StageNow:
    """What users see of a worker at one moment.

    Attributes:
        shares: Fractions of the worker's recent time, by the keys of `FRACTIONS`; None until known.
        queued: Messages that were sent to the worker and not received yet.
        memory_bytes: Memory that the worker uses; None if unknown.
        restarts: Whether the worker has failed and is being started again.
    """

    shares: Mapping[str, float] | None
    queued: int
    memory_bytes: int | None
    restarts: bool = False

    def fields(self) -> dict[str, float | None]:
        """Return fractions and memory, by names such as `compute_fraction`."""
        shares = self.shares or {}
        names = ("compute", "aux", "starved", "blocked")
        fractions = {f"{name}_fraction": shares.get(name) for name in names}
        return {**fractions, "memory_bytes": self.memory_bytes}


@dataclass(frozen=True)
class Now:
    """A run at one moment.

    Attributes:
        step: Optimizer steps done by the last stage.
        steps_per_second: Recent speed; None until known.
        left_s: Expected remaining time in seconds; None until known.
        stages: The state of each worker.
    """

    step: int
    steps_per_second: float | None
    left_s: float | None
    stages: tuple[StageNow, ...]


class Progress:
    """Computes the progress of a run, which began at optimizer step `start` and ends at `steps`.

    Each stage has `replicas` workers. Lists of workers have all workers of stage 0, then all of
    stage 1, and so on.
    """

    def __init__(self, start: int, steps: int, replicas: int = 1) -> None:
        self._start, self._steps, self._replicas = start, steps, replicas
        self._began_s: float | None = None
        self._looks: deque[tuple[float, Sequence[Look]]] = deque()
        self._shares: list[Mapping[str, float] | None] = []

    def update(self, now_s: float, looks: Sequence[Look]) -> Now:
        """Return the run's progress, given a monotonic clock's time and all workers' states."""
        step = max(self._start, looks[-1].step)
        if self._began_s is None and step > self._start:
            self._began_s, self._first = now_s, step  # the first step may include compilation
        self._looks.append((now_s, looks))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - WINDOW_S:
            self._looks.popleft()
        then_s, before = self._looks[0]
        passed_s = now_s - then_s
        steps = step - max(self._start, before[-1].step)
        rate = steps / passed_s if passed_s > 0 and steps else None
        shares = self._shares or [None] * len(looks)
        self._shares = [
            _shares(one, other) or last
            for one, other, last in zip(before, looks, shares, strict=True)
        ]
        stages = [
            StageNow(share, self._queued(looks, worker), look.memory_bytes, look.restarts)
            for worker, (look, share) in enumerate(zip(looks, self._shares, strict=True))
        ]
        return Now(step, rate, self._left_s(now_s, step), tuple(stages))

    def _queued(self, looks: Sequence[Look], worker: int) -> int:
        before = worker - self._replicas
        return max(0, looks[before].sent - looks[worker].received) if before >= 0 else 0

    def _left_s(self, now_s: float, step: int) -> float | None:
        if self._began_s is None or step == self._first:
            return None
        return (now_s - self._began_s) / (step - self._first) * max(0, self._steps - step)


def _shares(before: Look, now: Look) -> Mapping[str, float] | None:
    counted_s = now.counted_s - before.counted_s
    if counted_s <= 0:
        return None
    spent = {kind: max(0.0, now.spent_s[kind] - before.spent_s[kind]) for kind in KINDS}
    # The times are read one after another, so the sum of `spent_s` may exceed `counted_s`.
    whole_s = max(counted_s, sum(spent.values()))
    return {name: sum(spent[k] for k in kinds) / whole_s for name, kinds in FRACTIONS.items()}
