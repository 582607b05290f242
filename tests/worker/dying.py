"""Workers inside the test that die at chosen moments, and are started again by `recover=stage`.

A worker dies just before an activity: an instruction, a snapshot or a report. As after a killed
process, only the channels' memory and the last snapshot remain.
"""

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Links
from ppll_cli.job.pulse import Pulse
from ppll_cli.launch.restarts import Restarts
from ppll_cli.pipeline.rules import Channel
from ppll_cli.transport.journal import JournalReceiver, JournalSender, JournalTransport
from tests.worker.inside import Died, Network, Turns


class Source(JournalSender):
    """A sender that hands the turn on while it waits."""

    turns: Turns

    def wait(self, timeout_s: float) -> bool:
        return self.turns.wait_until(lambda: super(Source, self).wait(0))

    def send(self, header: object, tensors: Mapping[str, Tensor]) -> None:
        super().send(header, tensors)
        self.turns.notify_all()


class Target(JournalReceiver):
    """A receiver that hands the turn on while it waits."""

    turns: Turns

    def wait(self, timeout_s: float) -> bool:
        return self.turns.wait_until(lambda: super(Target, self).wait(0))

    def free(self) -> None:
        super().free()
        self.turns.notify_all()


class Mortal(Pulse):
    """The pulse of a worker that dies before some of its activities."""

    counts: Counter[Seat]
    seat: Seat
    deaths: Collection[int]

    def begin(self, doing: str, limit_s: float | None) -> None:
        super().begin(doing, limit_s)
        self.counts[self.seat] += 1
        if self.counts[self.seat] in self.deaths:
            raise Died(doing)


class Journals(Network):
    """Connects the workers of a job, some of which die.

    Args:
        job: The job.
        folder: A folder for snapshots.
        deaths: For each worker, at which of its activities it dies, counted over all restarts.

    Attributes:
        activities: How many activities each worker has begun.
        pulses: The pulse of each worker, which a restarted worker shares with the one before it.
        restarts: The part of the launcher that knows what the workers have reported.
    """

    def __init__(
        self, job: Job, folder: Path, deaths: Mapping[Seat, Collection[int]] | None = None
    ) -> None:
        super().__init__(Turns(), job)
        self._deaths = deaths or {}
        self.activities: Counter[Seat] = Counter()
        self.pulses: dict[Seat, Mortal] = {}
        folder.mkdir(exist_ok=True)
        self.restarts = Restarts(job, folder, lambda report: None)
        transport = JournalTransport(depth=job.depth)
        self._pristine = {c: transport.channel(*room) for c, room in job.channels.items()}
        self._senders: dict[Channel, Source] = {}
        self._receivers: dict[Channel, Target] = {}

    def links(self, seat: Seat, told: list[dict[str, Any]]) -> Links:
        """Return the links of a worker, with new ends of channels, as a new process gets them."""
        parts: dict[str, Any] = vars(super().links(seat, told)).copy()
        parts["senders"], parts["receivers"] = {}, {}
        for channel, (sender, receiver) in self._pristine.items():
            if channel.source == seat.stage:
                parts["senders"][channel] = self._senders[channel] = _as(Source, sender, self.turns)
            if channel.target == seat.stage:
                target = _as(Target, receiver, self.turns)
                parts["receivers"][channel] = self._receivers[channel] = target
        pulse = self.pulses.setdefault(seat, Mortal())
        pulse.counts, pulse.seat = self.activities, seat
        pulse.deaths = self._deaths.get(seat, ())
        parts["pulse"], parts["recovery"] = pulse, self.restarts.recovery(seat)
        parts["parent"] = copy.copy(parts["parent"])
        parts["parent"].send = lambda r: None if self.restarts.repeats(r) else told.append(r)
        return Links(**parts)

    def bytes_sent(self) -> dict[Channel, int]:
        """Return for each channel the number of bytes that its last sender has counted."""
        return {channel: sender.bytes_sent for channel, sender in self._senders.items()}

    def check(self) -> None:
        """Check that every sent message has been received."""
        for channel, sender in self._senders.items():
            assert sender.position == self._receivers[channel].position


def _as(own: type[Any], end: object, turns: Turns) -> Any:
    """Return a copy of an end of a channel that has done nothing yet, as an object of a class."""
    new: Any = copy.copy(end)
    new.__class__ = own
    new.turns = turns
    return new
