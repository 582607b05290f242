"""How machine 0 handles the messages of other machines."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import Value
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from ppll_cli.errors import (
    ConfigError,
    Interrupted,
    PpllError,
    RunFailedError,
    WorkerFailedError,
)
from ppll_cli.job.checkpoint import unfinished_folder
from ppll_cli.job.job import Job
from ppll_cli.job.manifest import SavedFile
from ppll_cli.job.spelling import spelled
from ppll_cli.launch.machines import others
from ppll_cli.launch.machines.fleet import Fleet, Message, read_error
from ppll_cli.launch.machines.others import Follower, Leader, Report, Seen
from ppll_cli.launch.machines.rendezvous import Rendezvous
from tests.conftest import prepared

FILE = SavedFile("stage-1.safetensors", 3, "ab")


class OneAway:
    """Files from another machine, which arrive when the test sets `there`."""

    def __init__(self) -> None:
        self.taken: list[tuple[SavedFile, Path]] = []
        self.there = Event()
        self.problem = ""

    def take(self, file: SavedFile, folder: Path) -> Event:
        self.taken.append((file, folder))
        return self.there

    def check(self) -> None:
        if self.problem:
            raise RunFailedError(self.problem)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    made = prepared("gpus=2").job
    return replace(made, homes=(0, 1), run_dir=str(tmp_path))


def said(kind: str, **fields: Any) -> Message:
    report = {"kind": kind, "stage": 1, "replica": 0, **fields}
    return {"kind": "report", "machine": 1, "report": spelled(report)}


class Told(Fleet):
    """A fleet whose messages a test makes."""

    def __init__(self, messages: list[Message], parcels: OneAway | None) -> None:
        self.rank, self._told, self._unheard = 0, messages, None
        self._inbox = SimpleQueue()
        away: Any = {} if parcels is None else {1: parcels}
        self.parcels = away

    def hear(self, timeout_s: float = 0.0) -> Message | None:
        """Return the test's next message."""
        return self._told.pop(0) if self._told else super().hear(timeout_s)

    def silent(self) -> None:
        """No machine is silent."""

    def name(self, machine: int) -> str:
        """Return the machine's name."""
        return f"machine {machine}"


def leader(job: Job, messages: list[Message], parcels: OneAway | None) -> Leader:
    return Leader(Told(messages, parcels), job, SimpleNamespace(value=0))


def test_reports_wait_for_a_file_on_its_way_but_failures_do_not(job: Job, tmp_path: Path) -> None:
    parcels, messages, dealt = OneAway(), list[Message](), list[str]()
    one = leader(job, messages, parcels)

    def handle(_: Seen, report: Report) -> None:
        dealt.append(report["kind"])

    messages += [said("metrics"), said("saved", step=4, file=FILE), said("metrics"), said("done")]
    assert list(one.handle_messages(handle)) == []
    assert parcels.taken == [(FILE, unfinished_folder(tmp_path, 4))]
    assert dealt == ["metrics"]
    messages += [said("restart", error="gone"), said("restarted", began_s=1.0, ended_s=2.0)]
    messages += [said("log", level=20, message="hm"), said("failed", error="boom")]
    (failure,) = one.handle_messages(handle)
    assert failure["error"] == "boom"
    assert dealt == ["metrics", "restart", "restarted", "log"]
    parcels.there.set()
    assert list(one.handle_messages(handle)) == []
    assert dealt == ["metrics", "restart", "restarted", "log", "saved", "metrics", "done"]


def test_a_file_that_cannot_be_received_fails_the_run(job: Job) -> None:
    parcels = OneAway()
    parcels.problem = "it arrived damaged"
    with pytest.raises(RunFailedError, match="it arrived damaged"):
        list(leader(job, [], parcels).handle_messages(lambda *_: None))


def test_no_report_waits_if_the_run_directory_is_shared(job: Job) -> None:
    dealt = list[str]()
    messages = [said("saved", step=4, file=FILE), said("done")]
    one = leader(job, messages, None)
    assert list(one.handle_messages(lambda _, report: dealt.append(report["kind"]))) == []
    assert dealt == ["saved", "done"]


def test_a_worker_that_fails_without_an_exception_is_the_cause(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with an exception may only have lost its connection to a worker that failed.

    So machine 0 waits for the reports of other machines.
    """
    stumbled = {"error": "lost a connection", "traceback": "torch/distributed/", "time": 1.0}
    silent = {"error": "is stopped", "time": 2.0}
    messages, pauses = [said("failed", **stumbled)], list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            messages.append(said("failed", **silent))

    monkeypatch.setattr(others, "HEARING_S", 60.0)
    clock = SimpleNamespace(monotonic=monotonic, perf_counter=perf_counter, sleep=pause)
    monkeypatch.setattr(others, "time", clock)
    one = leader(job, messages, None)
    heard = one.verdict([], lambda *_: None)
    assert (heard["error"], heard["machine"]) == ("is stopped", "machine 1")
    assert len(pauses) == 4
    messages.append(said("failed", **stumbled))
    own = {"stage": 0, **silent}
    assert one.verdict([own], lambda *_: None) == {**own, "machine": "machine 0"}
    assert len(messages) == 1


def failed(error: Exception) -> Message:
    """Return the message by which machine 1 tells that a job has failed."""
    told = list[Message]()
    machine = Told([], None)
    machine.rank, machine.jobs = 1, 1
    machine.tell = told.append  # type: ignore[assignment, method-assign]
    machine.fail(error)
    return {"machine": 1, **json.loads(json.dumps(told.pop()))}


GONE = failed(RunFailedError("multiprocessing's fork server is gone"))


def test_a_worker_that_lost_a_connection_is_not_blamed_for_another_machines_failure(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine 1's fork server was killed.

    The message once named the healthy worker of machine 0.
    """
    messages, pauses = list[Message](), list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            messages.append({**GONE})

    monkeypatch.setattr(others, "HEARING_S", 60.0)
    clock = SimpleNamespace(monotonic=monotonic, perf_counter=perf_counter, sleep=pause)
    monkeypatch.setattr(others, "time", clock)
    one = leader(job, messages, None)
    words = {"error": "lost it", "traceback": "ppll_cli/transport/network.py", "time": 1.0}
    with pytest.raises(RunFailedError, match=r"^machine 1: multiprocessing's fork server is gone$"):
        one.verdict([{"stage": 0, **words}], lambda *_: None)


def test_a_worker_with_an_exception_of_its_own_stays_the_cause(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "HEARING_S", 0.05)
    one = leader(job, [{**GONE}], None)
    own = {"stage": 0, "error": "boom", "traceback": "tests/own_models.py", "time": 1.0}
    assert one.verdict([own], lambda *_: None)["error"] == "boom"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LookupError("no such key"), RunFailedError("machine 1: LookupError: no such key")),
        (RunFailedError("a helper is gone"), RunFailedError("machine 1: a helper is gone")),
        (ConfigError("data.root", Path("/d"), "is missing", "mount it"), None),
        (Interrupted(2), None),
        (
            WorkerFailedError({"stage": 1, "device": "cpu", "error": "x", "shapes": {"y": [2]}}),
            None,
        ),
    ],
)
def test_other_machines_raise_the_error_that_a_machine_tells(
    error: Exception, told: PpllError | None
) -> None:
    heard = read_error(failed(error))
    wanted = told or error
    assert (type(heard), str(heard)) == (type(wanted), str(wanted))
    assert {**vars(heard), "value": ""} == {**vars(wanted), "value": ""}


@pytest.fixture
def fleets() -> Iterator[tuple[Fleet, Fleet]]:
    """Return the launchers of two machines, which can only exchange messages."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [Rendezvous(rank, 2, "127.0.0.1", port, hosted=False) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(Fleet, places)
        yield first, second
        list(pool.map(Fleet.close, (second, first)))


def wait_for(follower: Follower) -> None:
    until_s = monotonic() + 30.0
    while monotonic() < until_s and follower.ended is None:
        list(follower.handle_messages(lambda *_: None))


@pytest.mark.slow
def test_the_end_of_an_abandoned_job_keeps_the_message_of_the_next_job(
    job: Job, fleets: tuple[Fleet, Fleet]
) -> None:
    """Machine 0 failed before its workers started, and already does the next job of a sweep."""
    first, second = fleets
    follower = Follower(second, job, Value("i", 0))
    first.tell({"kind": "job", "job": 2})
    with pytest.raises(RunFailedError, match=r"machine 0 \(.*\) has given up the run"):
        wait_for(follower)
    assert second.hear() == {"kind": "job", "job": 2, "machine": 0}
    assert second.hear() is None
    first.tell({"kind": "end of job", "signal": None})
    wait_for(follower)
    assert follower.ended is not None
