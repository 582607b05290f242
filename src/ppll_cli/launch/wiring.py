"""Connects the workers of a run: channels between stages, and process groups."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import ChannelEnds
from ppll_cli.job.spelling import read, spelled
from ppll_cli.pipeline.rules import Channel
from ppll_cli.transport.channel import ALIGNMENT, Receiver, Sender, Transport
from ppll_cli.transport.choice import usable
from ppll_cli.transport.descriptors import check_descriptors
from ppll_cli.transport.groups import Group, Groups, backend
from ppll_cli.transport.journal import JournalTransport
from ppll_cli.transport.memory import check_writable
from ppll_cli.transport.network import NetworkReceiver, NetworkSender, bytes_group
from ppll_cli.transport.replicas import Replicas

AHEAD = 4
"""Number of items (batches or marks) that replica 0 of stage 0 may be ahead of other replicas."""


@dataclass(frozen=True)
class _Way:
    source: Seat
    target: Seat
    slots: int
    size: int  # largest size of a message in bytes
    channel: Channel | None = None  # None: replica 0 of stage 0 sends items to another replica

    @property
    def name(self) -> str:
        ends = (f"stage {seat.stage} replica {seat.replica}" for seat in (self.source, self.target))
        what = f"{self.channel.kind} {self.channel.chunk}" if self.channel else "items"
        return f"{what}, {' to '.join(ends)}"


def needs_groups(job: Job) -> bool:
    """Return whether some workers need process groups of torch.distributed."""
    return job.replicas > 1 or len({*job.homes}) > 1


def fitting(name: str, transport: Transport, job: Job, machine: int) -> Transport:
    """Choose the transport that makes the channels inside this machine.

    It is a `JournalTransport` if a stage of this machine can be restarted. Otherwise it is
    `transport`, or queues if `transport` cannot work on this machine.

    Args:
        name: Name of `transport` in messages to the user.
        transport: The transport that the user has chosen.
        job: The job that needs the channels.
        machine: Number of this machine.

    Raises:
        ConfigError: Neither `transport` nor queues can work on this machine, shared memory cannot
            be written to, or a process needs more file descriptors than it may open.
    """
    check_writable()
    seats = [seat for seat in job.seats if job.home(seat) == machine]
    ways = [w for w in _ways(job) if job.home(w.source) == job.home(w.target) == machine]
    size = sum(way.slots * way.size for way in ways)
    if job.restartable & {seat.stage for seat in seats}:  # `prepare` has checked shared memory
        chosen: Transport = JournalTransport(depth=transport.depth, wire_dtype=transport.wire_dtype)
    else:
        chosen = usable(name, transport, size, [job.device(seat) for seat in seats])
    ends = [(seats.index(way.source), seats.index(way.target), way.slots) for way in ways]
    tensors = max((len(job.carried(channel)) for channel in job.channels), default=0)
    check_descriptors(name, chosen, len(seats), ends, tensors)
    return chosen


def wire(
    job: Job, transport: Transport, store: str, interface: str, machine: int | None = None
) -> dict[Seat, ChannelEnds]:
    """Return the ends of channels, and the process groups, that each worker uses.

    A channel between two stages connects replicas with equal numbers.

    Args:
        job: The job whose workers are connected.
        transport: Makes the channels inside a machine. Those between machines use
            torch.distributed.
        store: Address at which the members of process groups find one another.
        interface: Name of the network interface that process groups use.
        machine: Number of the machine whose channels are made; None for all machines.
    """
    ends = {seat: ChannelEnds() for seat in job.seats}
    _add_groups(job, ends, store, interface)
    for way in _ways(job):
        if machine is not None and machine not in (job.home(way.source), job.home(way.target)):
            continue
        sender, receiver = _channel(job, way, transport, ends)
        if way.channel is None:
            ends[way.source].followers[way.target.replica] = sender
            ends[way.target].leader = receiver
        else:
            ends[way.source].senders[way.channel] = sender
            ends[way.target].receivers[way.channel] = receiver
    return ends


def _add_groups(job: Job, ends: Mapping[Seat, ChannelEnds], store: str, interface: str) -> None:
    groups, apart = _groups(job), len({*job.homes}) > 1
    # All other workers take no part in torch.distributed, so they can be restarted alone.
    members = sorted({number for group in groups.values() for number in group.ranks})
    ranked = {
        name: replace(group, ranks=tuple(map(members.index, group.ranks)))
        for name, group in groups.items()
    }
    for rank, number in enumerate(members):
        seat = job.seats[number]
        own = ends[seat].groups = Groups(store, rank, len(members), ranked, interface, apart)
        if job.replicas > 1:
            ends[seat].replicas = Replicas(own, _replicas(seat.stage))


def _channel(
    job: Job, way: _Way, transport: Transport, ends: Mapping[Seat, ChannelEnds]
) -> tuple[Sender, Receiver]:
    devices = job.device(way.source), job.device(way.target)
    if job.home(way.source) == job.home(way.target):
        return transport.channel(way.slots, way.size, *devices)
    theirs, ours = ends[way.source].groups, ends[way.target].groups
    assert theirs is not None
    assert ours is not None
    size = way.name, way.slots, way.size
    schema = "items" if way.channel is None else _schema(job, way.channel, way.size)
    # Weights keep their dtype, so that the loss that reads them does not depend on the machine.
    weights = way.channel is not None and way.channel.kind == "weights"
    wire = None if weights else transport.wire_dtype
    return (
        NetworkSender(theirs, *size, devices[0], schema, spelled, wire),
        NetworkReceiver(ours, *size, devices[1], schema, read, wire),
    )


def _ways(job: Job) -> Iterator[_Way]:
    for channel, room in job.channels.items():
        for replica in range(job.replicas):
            source, target = Seat(channel.source, replica), Seat(channel.target, replica)
            yield _Way(source, target, room.slots, room.size, channel)
    for replica in range(1, job.replicas):
        yield _Way(Seat(0, 0), Seat(0, replica), AHEAD, ALIGNMENT)


def _schema(job: Job, channel: Channel, size: int) -> str:
    carried = job.carried(channel).items()
    forms = [[name, str(spec.dtype), list(spec.shape)] for name, spec in carried]
    return json.dumps([*forms, size])


def _groups(job: Job) -> dict[str, Group]:
    # The `ranks` of these groups are indices in `Job.seats`; `_add_groups` replaces them.
    found = {}
    if job.replicas > 1:
        for stage in range(job.stages):
            seats = [Seat(stage, replica) for replica in range(job.replicas)]
            carrier = backend([(job.home(seat), job.device(seat)) for seat in seats])
            found[_replicas(stage)] = Group(tuple(map(job.number, seats)), carrier)
    for way in _ways(job):
        ends = way.source, way.target
        if job.home(way.source) == job.home(way.target):
            continue
        ranks = job.number(way.source), job.number(way.target)
        found[way.name] = Group(ranks, "gloo", directed=True)
        carrier = backend([(job.home(seat), job.device(seat)) for seat in ends])
        if carrier != "gloo" and way.channel is not None:
            found[bytes_group(way.name)] = Group(ranks, carrier, directed=True)
    return found


def _replicas(stage: int) -> str:
    return f"replicas of stage {stage}"
