"""What carries messages and gradients between devices, as far as predictions know."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from ppll_cli.job.job import Job, Seat
from ppll_cli.pipeline.simulate import Journey


class Link(NamedTuple):
    """A connection, each way."""

    bytes_per_second: float
    latency_s: float = 0.0


@dataclass(frozen=True)
class Interconnect:
    """The connections of some machines and their devices.

    Attributes:
        within: What carries messages between two devices of a machine, while they go on; None: they
            are copied in its memory by who sends them.
        between: A machine's connection to the others, shared by all messages that leave it.
        bf16: Between machines, numbers of 32 bits travel as 16.
    """

    within: Link | None = None
    between: Link | None = None
    bf16: bool = False


def ring_bytes(size: int, replicas: int) -> int:
    """What each replica sends in an all-reduce: every part of the sum but its own, twice."""
    return size * 2 * (replicas - 1) // replicas


class Carriers:
    """What carries the messages and averages of a job.

    Args:
        job: Whose; `homes` says which of its devices are on which machine.
        interconnect: Of these machines.
    """

    def __init__(self, job: Job, interconnect: Interconnect) -> None:
        self._job, self._interconnect = job, interconnect
        self._leaving = Counter(
            job.home(Seat(first, replica))
            for first, second in neighbours(job)
            for replica in range(job.replicas)
            if self._leaves(first, second, replica)
        )

    def crosses(self, source: int, target: int) -> bool:
        """Whether messages between two stages go to another machine, for any of their replicas."""
        return any(self._leaves(source, target, r) for r in range(self._job.replicas))

    def of_edge(self, source: int, target: int) -> Link | None:
        """What two stages have for themselves, if all that share their link use it."""
        if not self.crosses(source, target) or self._interconnect.between is None:
            return self._interconnect.within
        first, replicas = min(source, target), range(self._job.replicas)
        sharing = max(
            self._leaving[self._job.home(Seat(first, replica))]
            for replica in replicas
            if self._leaves(source, target, replica)
        )
        link = self._interconnect.between
        return link._replace(bytes_per_second=link.bytes_per_second / sharing)

    def of_average(self, stage: int) -> Link | None:
        """What the replicas of a stage are connected by."""
        seats = [Seat(stage, replica) for replica in range(self._job.replicas)]
        apart = len({self._job.home(seat) for seat in seats}) > 1
        return (apart and self._interconnect.between) or self._interconnect.within

    def size(self, source: int, target: int, size: int) -> int:
        """Bytes that cross, of a message between two stages."""
        return size // 2 if self._interconnect.bf16 and self.crosses(source, target) else size

    def message(self, source: int, target: int, size: int, as_is: bool = False) -> Journey | None:
        """The way of a message of so many bytes; None: the sender has copied it to its place.

        Args:
            source: The stage that sends.
            target: The stage that receives.
            size: How many bytes.
            as_is: They cross in their own type, as weights do.
        """
        link = self.of_edge(source, target)
        if link is None:
            return None
        size = size if as_is else self.size(source, target, size)
        return Journey(size / link.bytes_per_second, link.latency_s)

    def average(self, stage: int, size: int) -> Journey | None:
        """The same of the all-reduce of so many bytes, as a ring makes it."""
        link, replicas = self.of_average(stage), self._job.replicas
        if link is None:
            return None
        moved = ring_bytes(size, replicas)
        return Journey(moved / link.bytes_per_second, 2 * (replicas - 1) * link.latency_s)

    def _leaves(self, source: int, target: int, replica: int) -> bool:
        return self._job.home(Seat(source, replica)) != self._job.home(Seat(target, replica))


def neighbours(job: Job) -> list[tuple[int, int]]:
    """The pairs of stages between which something travels, each once and the lower stage first."""
    return sorted({(min(pair), max(pair)) for pair in job.crossing()})
