"""What a launcher has to do with those of other machines while workers run.

Machine 0's leads: it hears what all workers report, and decides when all leave or stop. The others
follow: they watch their own workers, pass on what these say, and end when they are told to, or when
nothing is heard of machine 0 any more.
"""

import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from ppll_cli.errors import Interrupted, RunFailedError, WorkerFailedError
from ppll_cli.job import checkpoint
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import StopFlag
from ppll_cli.job.pulse import Pulse
from ppll_cli.launch.machines.fleet import Fleet, Message
from ppll_cli.launch.machines.spelling import read, spelled

Report = dict[str, Any]

HEARING_S = 2.0
"""After a failure that has a last word, how long others may take to tell of its cause."""

VERDICT_S = 10.0
"""How long machine 0 may take to say what the cause was."""


@dataclass
class Seen:
    """A worker, as far as a launcher sees it.

    Attributes:
        seat: Its place.
        name: What the user is told of that.
        pulse: What it does.
        done: Its last report, once that has come.
    """

    seat: Seat
    name: str
    pulse: Pulse
    done: Report | None = None


class Leader:
    """Machine 0's side.

    Args:
        fleet: The machines.
        job: The run.
        stop: Where this machine's workers look whether to stop.
    """

    def __init__(self, fleet: Fleet, job: Job, stop: StopFlag) -> None:
        self._fleet, self._job, self._stop = fleet, job, stop
        seats = [seat for seat in job.seats if job.home(seat) != fleet.rank]
        self.away = {seat: Seen(seat, job.name(seat), Pulse()) for seat in seats}
        self._waiting: dict[Seat, deque[tuple[Report, Event]]] = defaultdict(deque)

    def pass_on(self, report: Report) -> bool:
        """What this machine's workers report is dealt with here."""
        return False

    def news(self, deal: Callable[[Seen, Report], None]) -> Iterator[Report]:
        """Deal with what others have told; their failures.

        Raises:
            RunFailedError: Something else than a worker failed there.
        """
        for message in self._fleet.messages():
            match message["kind"]:
                case "report":
                    report = read(message["report"])
                    seen = self.away[Seat(report["stage"], report["replica"])]
                    if report["kind"] == "failed":
                        yield {**report, "machine": self._fleet.name(message["machine"])}
                    elif report["kind"] == "log":
                        deal(seen, report)
                    else:
                        there = self._there(message["machine"], report)
                        self._waiting[seen.seat].append((report, there))
                        self._deal(seen, deal)
                case "looks":
                    for number, look in message["looks"]:
                        _set(self.away[self._job.seats[number]].pulse, look)
                case "signal":
                    self._stop.value = self._stop.value or message["signal"]
                case "failed":
                    where = self._fleet.name(message["machine"])
                    raise RunFailedError(f"{where}: {message['problem']}")
        for parcels in self._fleet.parcels.values():
            parcels.check()
        for seen in self.away.values():
            self._deal(seen, deal)
        if silent := self._fleet.silent():
            yield self._gone(*silent)

    def verdict(self, failures: list[Report], deal: Callable[[Seen, Report], None]) -> Report:
        """What of all failures, here and there, is the cause; all end then.

        Raises:
            RunFailedError: Something else than a worker failed on another machine, and the workers
                have only lost their connections to that one.
        """
        until_s = time.monotonic() + HEARING_S
        while time.monotonic() < until_s and not any(map(_is_silent, failures)):
            try:
                failures += self.news(deal)
            except RunFailedError:
                if all(map(_stumbled, failures)):
                    raise
            time.sleep(0.1)
        root = cause(failures)
        root.setdefault("machine", self._fleet.name(0))
        return root

    def end(self, **how: Any) -> None:
        """Tell the others how it ends."""
        self._fleet.tell({"kind": "end of job", **how})

    def _there(self, machine: int, report: Report) -> Event:
        """Is set once what a report tells of is on this machine."""
        parcels = self._fleet.parcels.get(machine)
        if parcels is None or report["kind"] != "saved":
            here = Event()
            here.set()
            return here
        folder = checkpoint.unfinished_folder(self._job.run_dir, int(report["step"]))
        return parcels.take(report["file"], folder)

    def _deal(self, seen: Seen, deal: Callable[[Seen, Report], None]) -> None:
        """Deal with what a worker has reported, in order, as far as it is on this machine."""
        waiting = self._waiting[seen.seat]
        while waiting and waiting[0][1].is_set():
            deal(seen, waiting.popleft()[0])

    def _gone(self, machine: int, silent: str) -> Report:
        seat = next(seat for seat in self._job.seats if self._job.home(seat) == machine)
        return {
            "kind": "failed",
            "stage": seat.stage,
            "replica": seat.replica,
            "time": time.time(),
            "device": self._job.device(seat),
            "error": silent,
            "phase": str(self.away[seat].pulse),
            "batch": None,
            "machine": self._fleet.name(machine),
        }


class Follower:
    """Another machine's side.

    Args:
        fleet: The machines.
        job: The run.
        stop: Where this machine's launcher notes a signal.

    Attributes:
        ended: How it ended, once machine 0 has said so.
    """

    def __init__(self, fleet: Fleet, job: Job, stop: StopFlag) -> None:
        self._fleet, self._job, self._stop = fleet, job, stop
        self.away: dict[Seat, Seen] = {}
        self.ended: Message | None = None
        self._told_signal = False
        self._looked_s = 0.0

    @property
    def signal(self) -> int | None:
        """The signal that ended the run before its time, if one did."""
        return None if self.ended is None else self.ended["signal"]

    def pass_on(self, report: Report) -> bool:
        """Tell machine 0, and send it what was saved where it does not see that."""
        self._fleet.tell({"kind": "report", "report": spelled(report)})
        if report["kind"] == "saved" and (parcels := self._fleet.parcels.get(0)):
            folder = checkpoint.unfinished_folder(self._job.run_dir, report["step"])
            parcels.send(folder / report["file"].name, remove=True)
        return True

    def look(self, workers: Sequence[Seen]) -> None:
        """Tell machine 0 how far they are, now and then."""
        if self._stop.value and not self._told_signal:
            self._fleet.tell({"kind": "signal", "signal": self._stop.value})
            self._told_signal = True
        if time.monotonic() - self._looked_s > 1.0:
            self._looked_s = time.monotonic()
            looks = [[self._job.number(each.seat), _get(each.pulse)] for each in workers]
            self._fleet.tell({"kind": "looks", "looks": looks})

    def news(self, deal: Callable[[Seen, Report], None]) -> Iterator[Report]:
        """Hear how it ends.

        Raises:
            WorkerFailedError: A worker failed, somewhere.
            RunFailedError: Something else did, or nothing is heard of machine 0.
            Interrupted: A second signal came to machine 0.
        """
        for message in self._fleet.messages():
            if message["kind"] != "end of job":
                raise self._fleet.given_up(message)
            if report := message.get("report"):
                raise WorkerFailedError(read(report))
            if problem := message.get("problem"):
                raise RunFailedError(f"{self._fleet.name(0)}: {problem}")
            if message.get("at_once"):
                raise Interrupted(message["signal"])
            self.ended = message
            return  # what comes then is about the next job
        for parcels in self._fleet.parcels.values():
            parcels.check()
        if silent := self._fleet.silent():
            raise RunFailedError(silent[1])
        yield from ()

    def verdict(self, failures: list[Report], deal: Callable[[Seen, Report], None]) -> Report:
        """Tell machine 0 of failures here, and hear what the cause was.

        Raises:
            WorkerFailedError: It says so.
        """
        for failure in failures:
            self.pass_on(failure)
        until_s = time.monotonic() + VERDICT_S
        while time.monotonic() < until_s and self.ended is None:
            list(self.news(deal))
            time.sleep(0.1)
        return {**cause(failures), "machine": self._fleet.name(self._fleet.rank)}

    def end(self, **how: Any) -> None:
        """Tell machine 0 that it cannot go on here."""
        if "report" not in how:
            number = how.get("signal")
            told = f"stopped by {signal.Signals(number).name}" if number else how.get("problem")
            self._fleet.tell({"kind": "failed", "problem": told})


def cause(failures: Sequence[Report]) -> Report:
    """The failure that is the cause of the others: one without a last word, or else the first.

    Of several of a kind it is the first that is known of by then. Who lost a connection has only
    stumbled over somebody else's end; clocks of machines differ, and cannot tell.
    """

    def order(failure: Report) -> tuple[bool, bool, float]:
        return not _is_silent(failure), _stumbled(failure), failure["time"]

    return min(failures, key=order)


def _stumbled(failure: Report) -> bool:
    """Whether a worker failed because it lost a connection, so because of another's end."""
    words = failure.get("traceback", "")
    return any(each in words for each in ("torch/distributed/", "transport/network.py"))


def _is_silent(failure: Report) -> bool:
    """Whether there was no last word: a worker is gone, stopped or stuck, or its machine is."""
    return not failure.get("traceback")


_LOOK = ("step", "sent", "received", "memory_bytes", "counted_s")


def _get(pulse: Pulse) -> list[Any]:
    texts = [text.decode(errors="replace") for text in (pulse.doing, pulse.item)]
    return [*(getattr(pulse, name) for name in _LOOK), list(pulse.spent_s), *texts]


def _set(pulse: Pulse, look: Sequence[Any]) -> None:
    *numbers, spent_s, doing, item = look
    for name, number in zip(_LOOK, numbers, strict=True):
        setattr(pulse, name, number)
    for index, seconds in enumerate(spent_s):
        pulse.spent_s[index] = seconds
    pulse.begin(doing, None)
    pulse.take(item)
