"""How far a run is: from what is seen of its workers, without asking them."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("compute", "auxiliary", "optimizer", "starved", "blocked", "data", "transfer", "average")
"""What a stage spends its time on."""

WINDOW_S = 10.0
"""Speeds and shares shown are those of the last so many seconds."""


class Look(NamedTuple):
    """What is seen of a worker at one moment.

    Attributes:
        step: Optimizer steps done.
        sent: Messages sent to the next stage.
        received: Messages received from the stage before.
        memory_bytes: How much memory it uses; None where that is unknown.
        counted_s: How long its steady state has lasted.
        spent_s: On each of `KINDS`, in that time.
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
        shares: The share of its time that each of `KINDS` took lately; None before that is known.
        queued: Messages on their way to it.
        memory_bytes: How much memory it uses; None where that is unknown.
    """

    shares: Mapping[str, float] | None
    queued: int
    memory_bytes: int | None

    def fields(self) -> dict[str, float | None]:
        """The same under the names that `summary.json` has for the whole run."""
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
        step: Optimizer steps done, by the last stage.
        steps_per_second: Of late; None before it is known.
        left_s: How long the rest will take, with evaluations as frequent as until now; None before
            that can be said.
        stages: Each stage.
    """

    step: int
    steps_per_second: float | None
    left_s: float | None
    stages: tuple[StageNow, ...]


class Progress:
    """Follows a run.

    Args:
        start: Optimizer steps that were done before.
        steps: How many there are to be.
        replicas: Of each stage; they are neighbours among the workers.
    """

    def __init__(self, start: int, steps: int, replicas: int = 1) -> None:
        self._start, self._steps, self._replicas = start, steps, replicas
        self._began_s: float | None = None
        self._looks: deque[tuple[float, Sequence[Look]]] = deque()
        self._shares: list[Mapping[str, float] | None] = []

    def update(self, now_s: float, looks: Sequence[Look]) -> Now:
        """Take a look at all stages.

        Args:
            now_s: The time, on any clock that does not go back.
            looks: What is seen of each worker.
        """
        step = max(self._start, looks[-1].step)
        if self._began_s is None and step > self._start:
            self._began_s, self._first = now_s, step  # the first step may have compiled networks
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
    # The two are not read in one instant.
    whole_s = max(counted_s, sum(spent.values()))
    return {kind: max(0.0, seconds) / whole_s for kind, seconds in spent.items()}
