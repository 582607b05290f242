"""The connections between devices and machines, as predictions model them."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from ppll_cli.job.job import Job, Seat
from ppll_cli.pipeline.simulate import Journey


class Link(NamedTuple):
    """Speed and latency of a connection, equal in both directions."""

    bytes_per_second: float
    latency_s: float = 0.0


@dataclass(frozen=True)
class Interconnect:
    """The connections between machines, and between the devices of a machine.

    Attributes:
        within: The connection between two devices of a machine, which carries messages while the
            devices compute. None if there is none, so that senders copy messages themselves.
        between: The connection of a machine to other machines. All messages that leave the machine
            share it. None means the same as `within`.
        bf16: Whether float32 tensors travel as bfloat16 between machines.
    """

    within: Link | None = None
    between: Link | None = None
    bf16: bool = False


def ring_bytes(size: int, replicas: int) -> int:
    """Return the bytes that each replica sends in a ring all-reduce of `size` bytes."""
    return size * 2 * (replicas - 1) // replicas


class Carriers:
    """Finds the connection and the time of each message, and of each all-reduce over replicas."""

    def __init__(self, job: Job, interconnect: Interconnect) -> None:
        self._job, self._interconnect = job, interconnect
        self._leaving = Counter(
            job.home(Seat(first, replica))
            for first, second in connected_stages(job)
            for replica in range(job.replicas)
            if self._leaves(first, second, replica)
        )

    def crosses(self, source: int, target: int) -> bool:
        """Return whether two stages are on different machines in any replica."""
        return any(self._leaves(source, target, r) for r in range(self._job.replicas))

    def of_edge(self, source: int, target: int) -> Link | None:
        """Return the connection between two stages; None if senders copy messages themselves.

        Pairs of workers that share a connection between machines get equal parts of its bandwidth.
        """
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
        """Return the connection between a stage's replicas; None if there is none."""
        seats = [Seat(stage, replica) for replica in range(self._job.replicas)]
        apart = len({self._job.home(seat) for seat in seats}) > 1
        return (apart and self._interconnect.between) or self._interconnect.within

    def size(self, source: int, target: int, size: int) -> int:
        """Return how many bytes a stage sends for `size` bytes of float32 tensors.

        With `Interconnect.bf16`, it sends half of `size` if the stages are on different machines.
        """
        return size // 2 if self._interconnect.bf16 and self.crosses(source, target) else size

    def message(self, source: int, target: int, size: int, as_is: bool = False) -> Journey | None:
        """Return the time of a message of `size` bytes; None if the stages have no connection.

        Use `as_is=True` for weights, which are never sent as bfloat16.
        """
        link = self.of_edge(source, target)
        if link is None:
            return None
        size = size if as_is else self.size(source, target, size)
        return Journey(size / link.bytes_per_second, link.latency_s)

    def average(self, stage: int, size: int) -> Journey | None:
        """Return the time of a ring all-reduce of `size` bytes over a stage's replicas.

        The result is None if the replicas have no connection.
        """
        link, replicas = self.of_average(stage), self._job.replicas
        if link is None:
            return None
        moved = ring_bytes(size, replicas)
        return Journey(moved / link.bytes_per_second, 2 * (replicas - 1) * link.latency_s)

    def _leaves(self, source: int, target: int, replica: int) -> bool:
        return self._job.home(Seat(source, replica)) != self._job.home(Seat(target, replica))


def connected_stages(job: Job) -> list[tuple[int, int]]:
    """Return the pairs of stages that exchange tensors, each with the lower stage first."""
    return sorted({(min(pair), max(pair)) for pair in job.crossing()})
