"""A worker's connections, and the sequence of batches and marks that it reads from them.

A mark asks for an evaluation report, a checkpoint or the end of the run; see `job.course`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

from ppll_cli.job.course import Item, TrainBatch, Version
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.pulse import Pulse
from ppll_cli.pipeline.instructions import End
from ppll_cli.pipeline.rules import Channel
from ppll_cli.transport.channel import Receiver, Sender
from ppll_cli.transport.groups import Groups
from ppll_cli.transport.journal import JournalSender
from ppll_cli.transport.replicas import Replicas


class StopFlag(Protocol):
    """A flag in shared memory by which the parent asks for an early stop.

    `value` is 0, or the number of the signal that caused the stop.
    """

    value: int


@dataclass(frozen=True)
class Recovery:
    """What a worker needs to write snapshots, and to continue after its earlier process failed."""

    folder: str  # folder for snapshots of the worker's state
    saved: int = -1  # step of the latest checkpoint for which this worker's file was written


@dataclass
class ChannelEnds:
    """A worker's ends of channels, and its process groups.

    Attributes:
        followers: Only in replica 0 of stage 0, which decides which batch or mark comes next. It
            sends the decision to the stage's other replicas. Keys are numbers of replicas.
        leader: Only in the other replicas of stage 0: receives these decisions.
    """

    senders: dict[Channel, Sender] = field(default_factory=dict)  # to other stages
    receivers: dict[Channel, Receiver] = field(default_factory=dict)  # from other stages
    groups: Groups | None = None  # process groups of torch.distributed; None if none is needed
    replicas: Replicas | None = None  # connection to the other replicas of the stage, if any
    followers: dict[int, Sender] = field(default_factory=dict)
    leader: Receiver | None = None


@dataclass(kw_only=True)
class Links(ChannelEnds):
    """A worker's connections to other workers and to the parent process."""

    parent: Connection  # for reports to the parent, and for the parent's permission to exit
    stop: StopFlag
    pulse: Pulse
    recovery: Recovery | None = None  # None if workers are not restarted

    def ends(self) -> list[Sender | Receiver]:
        """Return the worker's ends of all channels."""
        receivers = [*self.receivers.values(), *([self.leader] if self.leader else [])]
        return [*receivers, *self.senders.values(), *self.followers.values()]


@dataclass(frozen=True)
class Header:
    """Identifies a message, so that the receiver can check that it is the expected one."""

    item: Item | Version  # batch or mark of the message, or version of its weights
    micro_batch: int = 0  # index of the micro-batch within its batch, from 0
    chunk: int = 0  # number of the chunk that receives the message


def upcoming(
    job: Job,
    seat: Seat,
    links: Links,
    wait: Callable[[Sender | Receiver, str], None],
    handled: int = 0,
    trained: int = 0,
) -> Iterator[Item]:
    """Yield every batch and mark that a worker has to handle, in order.

    Replica 0 of stage 0 decides which item comes next, and sends it to the stage's other replicas.
    A worker of another stage reads the item from the next message to its lowest chunk, without
    removing the message from the channel.

    After a restart, items that the worker's earlier process handled are not yielded again. The
    messages of these items must already be removed from the channels.

    Args:
        job: The job of the run.
        seat: Stage and replica of the worker.
        links: The worker's connections.
        wait: Called with a sender and "blocked", or with a receiver and "starved". It must wait
            until the sender has a free slot, or the receiver a message.
        handled: Number of items that the earlier process handled; 0 without a restart.
        trained: Number of training batches among these items.
    """
    if seat == Seat(0, 0):
        for decided in _decided(job, links, handled, trained):
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


def _decided(job: Job, links: Links, handled: int, trained: int) -> Iterator[Item]:
    passed = asked = 0
    senders = [sender for channel, sender in links.senders.items() if channel.kind == "activations"]

    def stops() -> bool:  # called before each training batch
        nonlocal asked
        asked += 1
        if passed < handled:
            return asked > trained
        # A restarted worker must repeat the decisions of its earlier process, because other stages
        # may already follow them. A message that the earlier process sent tells what it decided.
        for sender in senders:
            if isinstance(sender, JournalSender) and (header := sender.already_sent()) is not None:
                assert isinstance(header, Header)
                return not isinstance(header.item, TrainBatch)
        return bool(links.stop.value)

    for item in job.course.items(stops, job.start):
        passed += 1
        if passed > handled:
            yield item
