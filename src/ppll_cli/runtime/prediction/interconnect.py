"""What carries messages and gradients between devices, as far as predictions know."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from ppll_cli.runtime.job import Job, Seat
from ppll_cli.simulate import Journey


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
            job.home(seat)
            for cut in range(job.stages - 1)
            for seat in self._seats(cut)
            if self._leaves(seat)
        )

    def crosses(self, cut: int) -> bool:
        """Whether messages go to another machine behind a stage, for any of its replicas."""
        return any(self._leaves(seat) for seat in self._seats(cut))

    def of_edge(self, cut: int) -> Link | None:
        """What an edge behind a stage has for itself, if all that share its link use it."""
        if not self.crosses(cut) or self._interconnect.between is None:
            return self._interconnect.within
        sharing = max(self._leaving[self._job.home(s)] for s in self._seats(cut) if self._leaves(s))
        link = self._interconnect.between
        return link._replace(bytes_per_second=link.bytes_per_second / sharing)

    def of_average(self, stage: int) -> Link | None:
        """What the replicas of a stage are connected by."""
        apart = len({self._job.home(seat) for seat in self._seats(stage)}) > 1
        return (apart and self._interconnect.between) or self._interconnect.within

    def size(self, cut: int, size: int) -> int:
        """Bytes that cross, of a message behind a stage."""
        return size // 2 if self._interconnect.bf16 and self.crosses(cut) else size

    def message(self, cut: int, size: int) -> Journey | None:
        """The way of a message of so many bytes behind a stage; None: it was copied there."""
        link = self.of_edge(cut)
        if link is None:
            return None
        return Journey(self.size(cut, size) / link.bytes_per_second, link.latency_s)

    def average(self, stage: int, size: int) -> Journey | None:
        """The same of the all-reduce of so many bytes, as a ring makes it."""
        link, replicas = self.of_average(stage), self._job.replicas
        if link is None:
            return None
        moved = ring_bytes(size, replicas)
        return Journey(moved / link.bytes_per_second, 2 * (replicas - 1) * link.latency_s)

    def _seats(self, stage: int) -> list[Seat]:
        return [Seat(stage, replica) for replica in range(self._job.replicas)]

    def _leaves(self, seat: Seat) -> bool:
        return self._job.home(seat) != self._job.home(seat._replace(stage=seat.stage + 1))
