"""How far a run is, from what can be seen of its workers without asking them."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("compute", "auxiliary", "optimizer", "starved", "blocked", "data", "transfer", "average")
"""The kinds of work and waiting that a stage's time is counted as."""

WINDOW_S = 10.0
"""Length in seconds of the recent time over which speeds and shares are measured."""


class Look(NamedTuple):
    """What is seen of a worker at one moment.

    Attributes:
        step: Optimizer steps done.
        sent: Messages sent to the next stage.
        received: Messages received from the stage before.
        memory_bytes: Memory that it uses; None if unknown.
        counted_s: How long its steady state has lasted, in seconds.
        spent_s: Seconds of that time, for each of `KINDS`.
    """

    step: int
    sent: int
    received: int
    memory_bytes: int | None
    counted_s: float
    spent_s: Mapping[str, float]


@dataclass(frozen=True)
class StageNow:
    """A stage at one moment.

    Attributes:
        shares: Share of its recent time for each of `KINDS`; None until it is known.
        queued: Messages on their way to it.
        memory_bytes: Memory that it uses; None if unknown.
    """

    shares: Mapping[str, float] | None
    queued: int
    memory_bytes: int | None

    def fields(self) -> dict[str, float | None]:
        """Return these numbers under the names that `summary.json` uses for the whole run."""
        parts = {"compute": ("compute", "optimizer"), "aux": ("auxiliary",)}
        parts |= {kind: (kind,) for kind in ("starved", "blocked")}
        shares = self.shares
        found: dict[str, float | None] = {
            f"{name}_fraction": None if shares is None else sum(shares[kind] for kind in kinds)
            for name, kinds in parts.items()
        }
        return {**found, "memory_bytes": self.memory_bytes}


@dataclass(frozen=True)
class Now:
    """A run at one moment.

    Attributes:
        step: Optimizer steps done by the last stage.
        steps_per_second: Recent speed; None until it is known.
        left_s: How long the rest will take in seconds, if evaluations stay as frequent; None until
            it is known.
        stages: The stages, or their replicas.
    """

    step: int
    steps_per_second: float | None
    left_s: float | None
    stages: tuple[StageNow, ...]


class Progress:
    """Follows a run.

    Args:
        start: Optimizer steps done before the run was resumed.
        steps: Optimizer steps at its end.
        replicas: Number of replicas of each stage, which are neighbours among the workers.
    """

    def __init__(self, start: int, steps: int, replicas: int = 1) -> None:
        self._start, self._steps, self._replicas = start, steps, replicas
        self._began_s: float | None = None
        self._looks: deque[tuple[float, Sequence[Look]]] = deque()
        self._shares: list[Mapping[str, float] | None] = []

    def update(self, now_s: float, looks: Sequence[Look]) -> Now:
        """Take what is seen of all workers at a moment, and return how far the run is.

        Args:
            now_s: The time in seconds, on any clock that does not go back.
            looks: What is seen of each worker.
        """
        step = max(self._start, looks[-1].step)
        if self._began_s is None and step > self._start:
            self._began_s, self._first = now_s, step  # leaves out compilation in the first step
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
            StageNow(share, self._queued(looks, worker), look.memory_bytes)
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
    spent = {kind: now.spent_s[kind] - before.spent_s[kind] for kind in KINDS}
    # `counted_s` and `spent_s` are not read at the same instant.
    whole_s = max(counted_s, sum(spent.values()))
    return {kind: max(0.0, seconds) / whole_s for kind, seconds in spent.items()}
