"""What machine 0 makes of what other machines tell it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from ppll_cli.errors import RunFailedError
from ppll_cli.runtime.checkpoint import SavedFile, unfinished_folder
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.machines.fleet import Message
from ppll_cli.runtime.machines.others import Leader, Report, Seen
from ppll_cli.runtime.machines.spelling import spelled
from tests.conftest import prepared

FILE = SavedFile("stage-1.safetensors", 3, "ab")


class OneAway:
    """Parcels that arrive when the test says so."""

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


def leader(job: Job, messages: list[Message], parcels: OneAway | None) -> Leader:
    def told() -> Iterator[Message]:
        while messages:
            yield messages.pop(0)

    fleet: Any = SimpleNamespace(
        rank=0,
        parcels={} if parcels is None else {1: parcels},
        messages=told,
        silent=lambda: None,
        name=lambda machine: f"machine {machine}",
    )
    return Leader(fleet, job, SimpleNamespace(value=0))


def test_what_follows_a_file_waits_for_it_and_a_failure_does_not(job: Job, tmp_path: Path) -> None:
    parcels, messages, dealt = OneAway(), list[Message](), list[str]()
    one = leader(job, messages, parcels)

    def deal(_: Seen, report: Report) -> None:
        dealt.append(report["kind"])

    messages += [said("metrics"), said("saved", step=4, file=FILE), said("metrics"), said("done")]
    assert list(one.news(deal)) == []
    assert parcels.taken == [(FILE, unfinished_folder(tmp_path, 4))]
    assert dealt == ["metrics"]
    messages += [said("log", level=20, message="hm"), said("failed", error="boom")]
    (failure,) = one.news(deal)
    assert failure["error"] == "boom"
    assert dealt == ["metrics", "log"]
    parcels.there.set()
    assert list(one.news(deal)) == []
    assert dealt == ["metrics", "log", "saved", "metrics", "done"]


def test_a_file_that_cannot_be_taken_fails_the_run(job: Job) -> None:
    parcels = OneAway()
    parcels.problem = "it came damaged"
    with pytest.raises(RunFailedError, match="it came damaged"):
        list(leader(job, [], parcels).news(lambda *_: None))


def test_nothing_waits_where_the_folder_is_shared(job: Job) -> None:
    dealt = list[str]()
    messages = [said("saved", step=4, file=FILE), said("done")]
    one = leader(job, messages, None)
    assert list(one.news(lambda _, report: dealt.append(report["kind"]))) == []
    assert dealt == ["saved", "done"]
