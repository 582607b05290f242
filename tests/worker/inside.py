"""Runs the real workers of a run as threads inside the test. Only one of them computes at a time.

No process is started, so a run takes about a second. A worker that waits for a channel lets another
one compute. When a slot is released, its tensors are overwritten, so code that still reads them
computes something else.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ppll_cli.config import settings
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Links
from ppll_cli.job.pulse import Pulse
from ppll_cli.pipeline.rules import Channel
from ppll_cli.prepare.preparation import prepare
from ppll_cli.prepare.subject import Found, Subject
from ppll_cli.transport.replicas import Replicas
from ppll_cli.transport.slots import layout_of
from ppll_cli.worker.state import tensors_of
from ppll_cli.worker.worker import Worker
from tests.conftest import assert_same, compose_config

LIMIT_S = 120.0
"""Limit for a wait. If it is exceeded, the test fails."""

UNEQUAL = {"at_s", "seconds", "stage"}
"""Fields of a report that depend on time, or on the partition of modules into stages."""


class Turns(Condition):
    """The right to compute. One thread holds it, and releases it while it waits."""

    broken = False

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Wait until a condition is true, or raise an error.

        The threads share torch's random generator. Each finds it as it left it, as in a process.
        """
        state = torch.get_rng_state()
        if not self.wait_for(lambda: self.broken or ready(), LIMIT_S) or self.broken:
            raise TimeoutError("the other workers do not get on")
        torch.set_rng_state(state)
        return True


class Ring:
    """Both ends of a channel, with the number of slots of a real run."""

    def __init__(self, turns: Turns, slots: int) -> None:
        self.turns, self.free = turns, slots
        self.messages: deque[tuple[object, dict[str, Tensor]]] = deque()
        self.held: deque[dict[str, Tensor]] = deque()
        self.bytes_sent = 0

    def send(self, header: object, tensors: Mapping[str, Tensor]) -> None:
        self.free -= 1
        copies = {name: _copy(tensor) for name, tensor in tensors.items()}
        self.messages.append((header, copies))
        self.bytes_sent += sum(tensor.nbytes for tensor in copies.values())
        self.turns.notify_all()

    def receive(self) -> tuple[object, dict[str, Tensor]]:
        header, tensors = self.messages.popleft()
        self.held.append(tensors)
        return header, tensors

    def release(self) -> None:
        for tensor in self.held.popleft().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        self.free += 1
        self.turns.notify_all()


class Source(SimpleNamespace):
    """The sending end of a channel."""

    def open(self) -> None: ...

    def wait(self, timeout_s: float) -> bool:
        return cast(Turns, self.ring.turns).wait_until(lambda: self.ring.free > 0)

    def send(self, header: object, tensors: Mapping[str, Tensor]) -> None:
        self.ring.send(header, tensors)

    @property
    def bytes_sent(self) -> int:
        return cast(int, self.ring.bytes_sent)


class Target(SimpleNamespace):
    """The receiving end of a channel."""

    def open(self) -> None: ...

    def wait(self, timeout_s: float) -> bool:
        return cast(Turns, self.ring.turns).wait_until(lambda: bool(self.ring.messages))

    def peek(self) -> object:
        return self.ring.messages[0][0]

    def receive(self) -> tuple[object, dict[str, Tensor]]:
        return cast(Ring, self.ring).receive()

    def release(self) -> None:
        self.ring.release()


@dataclass(frozen=True)
class Outcome:
    """The results of a run.

    Attributes:
        tensors: All tensors that a checkpoint would have.
        test: Loss and scores of each evaluation on the test set, by step and module.
        test_ema: The same for averaged weights.
        train: All training reports, by step and module, without times.
        job: The job that was run.
        sent: Number of bytes sent through each channel.
    """

    tensors: dict[str, Tensor]
    test: dict[tuple[int, int], tuple[float, dict[str, float]]]
    test_ema: dict[tuple[int, int], tuple[float, dict[str, float]]]
    train: dict[tuple[int, int], dict[str, Any]]
    job: Job
    sent: dict[Channel, int]


def run_inside(folder: Path, *overrides: str, **changes: Any) -> Outcome:
    """Run a configuration on CPU, with one worker for each stage and replica.

    Args:
        folder: Folder for its checkpoints.
        overrides: Overrides of the configuration.
        changes: New values for fields of the job.
    """
    job = job_inside(folder, "checkpoint.every=1000", *overrides)
    return execute(replace(job, **changes))


_FOUND: dict[tuple[str, tuple[range, ...]], Found] = {}
"""The ends of modules, by the part of the configuration and the modules that decide them."""


def job_inside(folder: Path, *overrides: str) -> Job:
    """Return the job of a configuration on CPU.

    Runs with the same model, data, local method, bank and optimizer share the traced ends of their
    modules, because tracing takes as long as the training of these tests.
    """
    config, _ = compose_config(["device=cpu", "threads=1", *overrides])
    decisive = repr([config[key] for key in ("model", "data", "local", "fba", "optim")])

    def at_ends(self: Subject, modules: tuple[range, ...]) -> Found:
        if (decisive, modules) not in _FOUND:
            _FOUND[decisive, modules] = self.ends.all(modules)
        return _FOUND[decisive, modules]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subject, "at_ends", at_ends)
        return prepare(settings.parse(config), str(folder)).job


class Died(BaseException):
    """Ends a worker as if it were killed. The next worker of its stage continues its work."""


def execute(job: Job, network: "Network | None" = None) -> Outcome:
    """Run a job. `network` connects the workers, and may raise `Died` in one of them."""
    network = network or Network(Turns(), job)
    turns = network.turns
    told: list[dict[str, Any]] = []
    workers: dict[Seat, Worker] = {}
    errors: list[BaseException] = []

    def lives(seat: Seat) -> bool:
        try:
            workers[seat] = Worker(job, seat, network.links(seat, told))
            workers[seat].run()
        except Died:
            return False
        return True

    def work(seat: Seat) -> None:
        torch.set_num_threads(1)
        with turns:
            try:
                while not lives(seat):
                    pass
            except BaseException as error:
                errors.append(error)
                turns.broken = True
                turns.notify_all()

    threads = [Thread(target=work, args=(seat,)) for seat in job.seats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    network.check()
    found = [
        tensors_of(c for s, worker in workers.items() for c in worker.chunks.values() if s[1] == r)
        for r in range(job.replicas)
    ]
    for other in found[1:]:
        assert_same(other, found[0])
    return Outcome(
        {name: tensor.detach().clone() for name, tensor in found[0].items()},
        _evaluations(told, "test"),
        _evaluations(told, "test_ema"),
        {
            (each["step"], each["module"]): {k: each[k] for k in each.keys() - UNEQUAL}
            for each in told
            if each["kind"] == "metrics" and each["split"] == "train"
        },
        job,
        network.bytes_sent(),
    )


def _evaluations(
    told: Iterable[Mapping[str, Any]], split: str
) -> dict[tuple[int, int], tuple[float, dict[str, float]]]:
    return {
        (each["step"], each["module"]): (each["loss"], each["scores"])
        for each in told
        if each["kind"] == "metrics" and each["split"] == split
    }


class Network:
    """All connections between the workers of a job."""

    def __init__(self, turns: Turns, job: Job) -> None:
        self._job, self.turns = job, turns
        self._rings = [
            {channel: Ring(turns, room.slots) for channel, room in job.channels.items()}
            for _ in range(job.replicas)
        ]
        self._follow = {replica: Ring(turns, 2) for replica in range(1, job.replicas)}
        self._meetings = [Meeting(turns, job.replicas) for _ in range(job.stages)]

    def links(self, seat: Seat, told: list[dict[str, Any]]) -> Links:
        """Return the links of a worker."""
        stage, replica = seat
        rings = self._rings[replica]
        found: dict[str, Any] = {
            "senders": {c: Source(ring=ring) for c, ring in rings.items() if c.source == stage},
            "receivers": {c: Target(ring=ring) for c, ring in rings.items() if c.target == stage},
            "parent": SimpleNamespace(send=told.append),
            "stop": SimpleNamespace(value=0),
            "pulse": Pulse(),
        }
        if self._job.replicas > 1:
            found["replicas"] = Together(self._meetings[stage], replica)
        if seat == Seat(0, 0):
            found["followers"] = {r: Source(ring=ring) for r, ring in self._follow.items()}
        elif stage == 0:
            found["leader"] = Target(ring=self._follow[replica])
        return Links(**found)

    def bytes_sent(self) -> dict[Channel, int]:
        """Return the number of bytes sent through each channel, added over all replicas."""
        return {c: sum(rings[c].bytes_sent for rings in self._rings) for c in self._rings[0]}

    def check(self) -> None:
        """Check that every message was received and released."""
        for ring in (*self._follow.values(), *(r for each in self._rings for r in each.values())):
            assert not ring.messages
            assert not ring.held


class Meeting:
    """Exchange of tensors between the replicas of a stage, in numbered rounds."""

    def __init__(self, turns: Turns, replicas: int) -> None:
        self.turns, self.replicas = turns, replicas
        self.rounds: dict[int, dict[int, list[Tensor]]] = {}

    def leave(self, number: int, replica: int, tensors: list[Tensor]) -> None:
        """Leave copies of a replica's tensors for all replicas."""
        copies = [tensor.detach().clone() for tensor in tensors]
        self.rounds.setdefault(number, {})[replica] = copies
        self.turns.notify_all()

    def take(self, number: int) -> list[list[Tensor]]:
        """Wait until all replicas have left tensors, and return these in order of the replicas."""
        self.turns.wait_until(lambda: len(self.rounds.get(number, {})) == self.replicas)
        return [self.rounds[number][replica] for replica in range(self.replicas)]


class Together(Replicas):
    """The connection of one replica to the other replicas of its stage."""

    def __init__(self, meeting: Meeting, replica: int) -> None:
        self._meeting, self._replica, self._next = meeting, replica, 0
        self._ranks = range(meeting.replicas)

    def _leave(self, tensors: list[Tensor]) -> int:
        self._next += 1
        self._meeting.leave(self._next, self._replica, tensors)
        return self._next

    def add(self, tensor: Tensor) -> Any:
        """Start a sum over the replicas. Waiting for it writes the sum into the tensor."""
        number = self._leave([tensor])

        def wait() -> None:
            parts = [part for (part,) in self._meeting.take(number)]
            tensor.copy_(torch.stack(parts).sum(0))

        return SimpleNamespace(wait=wait)

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace the tensors by those of the first replica."""
        own = list(tensors)
        for mine, first in zip(own, self._meeting.take(self._leave(own))[0], strict=True):
            mine.copy_(first)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all replicas."""
        return torch.cat([part for (part,) in self._meeting.take(self._leave([rows]))])


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy with the strides that the tensor has in a slot."""
    ((_, dtype, shape, strides),) = layout_of({"": tensor})
    return torch.empty_strided(shape, strides, dtype=dtype).copy_(tensor)
