"""A worker's connections, and what comes to it through them next."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from ppll_cli.job.course import EvaluationBatch, Item, TrainBatch, Version
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.pulse import Pulse
from ppll_cli.pipeline.instructions import Checkpoint, End, Evaluate
from ppll_cli.pipeline.rules import Channel
from ppll_cli.transport.channel import Receiver, Sender
from ppll_cli.transport.groups import Groups
from ppll_cli.transport.replicas import Replicas

_ITEMS: dict[str, Callable[..., Item | Version]] = {
    each.__name__: each
    for each in (TrainBatch, EvaluationBatch, Evaluate, Checkpoint, End, Version)
}


class StopFlag(Protocol):
    """Shared memory in which the parent asks for a stop."""

    value: int


@dataclass(frozen=True)
class Links:
    """A worker's connections.

    Attributes:
        senders: Of the channels to other stages.
        receivers: Of the channels from other stages.
        parent: Reports go there; the word to leave comes from there.
        stop: Set by the parent when the run is to stop early.
        pulse: What the parent sees of this worker while it reports nothing.
        groups: Process groups of torch.distributed, where there are any.
        replicas: Of the same stage, where there are several.
        followers: Of the first stage's first replica: the way to its others.
        leader: Of these others: the way from the first one.
    """

    senders: Mapping[Channel, Sender]
    receivers: Mapping[Channel, Receiver]
    parent: Connection
    stop: StopFlag
    pulse: Pulse
    groups: Groups | None = None
    replicas: Replicas | None = None
    followers: Mapping[int, Sender] = field(default_factory=dict)
    leader: Receiver | None = None

    def ends(self) -> list[Sender | Receiver]:
        """Of all channels."""
        receivers = [*self.receivers.values(), *([self.leader] if self.leader else [])]
        return [*receivers, *self.senders.values(), *self.followers.values()]


@dataclass(frozen=True)
class Header:
    """What travels with every message, so that the receiver sees whether it is the one it needs.

    Attributes:
        item: The batch or mark to which the message belongs, or the version of weights in it.
        micro_batch: Index of the micro-batch within its batch, from 0.
        chunk: The chunk for which the message is.
    """

    item: Item | Version
    micro_batch: int = 0
    chunk: int = 0

    def spelled(self) -> list[Any]:
        """As plain data, which JSON has words for."""
        return [type(self.item).__name__, astuple(self.item), self.micro_batch, self.chunk]

    @classmethod
    def read(cls, spelled: list[Any]) -> "Header":
        """What was spelled so."""
        name, values, micro_batch, chunk = spelled
        return cls(_ITEMS[name](*values), micro_batch, chunk)


def upcoming(
    job: Job, seat: Seat, links: Links, wait: Callable[[Sender | Receiver, str], None]
) -> Iterator[Item]:
    """Everything that flows through a worker, in order.

    Stage 0 decides what comes next, and of its replicas the first one, because all must stop after
    the same batch. Another stage reads it off the next message to its lowest chunk, which stays in
    its channel.

    Args:
        job: The run.
        seat: The worker's.
        links: The worker's.
        wait: Called with an end of a channel and the name of the wait; returns when it is ready.
    """
    if seat == Seat(0, 0):
        for decided in job.course.items(lambda: bool(links.stop.value), job.start):
            for follower in links.followers.values():
                wait(follower, "blocked")
                follower.send(Header(decided), {})
            yield decided
        return
    lowest = min(job.layout.of(seat.stage))
    source = job.layout.chunks[lowest - 1].stage
    receiver = links.leader or links.receivers[Channel(source, seat.stage, "activations", lowest)]
    item: Item | None = None
    while not isinstance(item, End):
        wait(receiver, "starved")
        header = receiver.peek()
        assert isinstance(header, Header)
        assert not isinstance(header.item, Version)
        item = header.item
        if links.leader is not None:
            receiver.receive()
            receiver.release()
        yield item
