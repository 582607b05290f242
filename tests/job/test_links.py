"""Which batch or mark comes next after a restart of stage 0."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppll_cli.job.course import TrainBatch, Version
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Header, Links, upcoming
from ppll_cli.pipeline.instructions import Checkpoint, End
from ppll_cli.pipeline.rules import Channel
from ppll_cli.transport.journal import JournalSender, JournalTransport
from tests.conftest import prepared


@pytest.fixture
def job(tmp_path: Path) -> Job:
    data = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
    vit = ["model.dim=16", "model.depth=2", "model.heads=2"]
    return prepared(*data, *vit, "batch_size=8", "epochs=3", "recover=stage").job


def links(sender: JournalSender, stop: int) -> Links:
    channel = Channel(0, 1, "activations", 1)
    found: Any = SimpleNamespace(
        senders={channel: sender}, followers={}, stop=SimpleNamespace(value=stop)
    )
    return cast(Links, found)


def items(
    job: Job, sender: JournalSender, stop: int, handled: int = 0, trained: int = 0
) -> list[str]:
    """What stage 0 decides; it sends each decision."""
    found = []
    for item in upcoming(job, Seat(0), links(sender, stop), lambda *_: None, handled, trained):
        sender.send(Header(item), {})
        found.append(type(item).__name__)
    return found


def test_what_other_stages_know_is_decided_again(job: Job) -> None:
    """Although the flag is set now, which it was not when the batch was sent."""
    sender, _receiver = JournalTransport(depth=1).channel(100, 0)
    pristine = copy.copy(sender)
    for step in range(3):
        sender.send(Header(TrainBatch(step, 0, step, 8)), {})
    found = items(job, copy.copy(pristine), stop=1)
    assert found == ["TrainBatch"] * 3 + ["Checkpoint", "End"]


def test_a_stop_that_other_stages_know_is_not_forgotten(job: Job) -> None:
    sender, _receiver = JournalTransport(depth=1).channel(100, 0)
    pristine = copy.copy(sender)
    for step in range(2):
        sender.send(Header(TrainBatch(step, 0, step, 8)), {})
    sender.send(Header(Checkpoint(2, 1)), {})
    sender.send(Header(End(2)), {})
    found = items(job, copy.copy(pristine), stop=0)
    assert found == ["TrainBatch", "TrainBatch", "Checkpoint", "End"]


@pytest.mark.parametrize("before", [0, 1, 5, 9])
def test_items_before_the_snapshot_are_left_out(job: Job, before: int) -> None:
    first, second = (JournalTransport(depth=1).channel(100, 0) for _ in range(2))
    whole = items(job, first[0], stop=0)
    trained = whole[:before].count("TrainBatch")
    rest = items(job, second[0], stop=0, handled=before, trained=trained)
    assert rest == whole[before:]


@pytest.mark.parametrize("before", [3, 4])
def test_a_snapshot_after_a_stop_does_not_undo_the_stop(job: Job, before: int) -> None:
    """Two batches, then the mark of a checkpoint, after which a snapshot may be due."""
    sender, _receiver = JournalTransport(depth=1).channel(100, 0)
    items_left = items(job, sender, stop=0, handled=before, trained=2)
    assert items_left == ["Checkpoint", "End"][before - 2 :]


def test_weights_that_travel_upstream_decide_nothing(job: Job) -> None:
    """Their headers name no batch."""
    sender, _receiver = JournalTransport(depth=1).channel(100, 0)
    weights, _other = JournalTransport(depth=1).channel(100, 0)
    pristine = copy.copy(weights)
    weights.send(Header(Version(0)), {})
    found: Any = links(sender, stop=0)
    found.senders[Channel(0, 1, "weights", 2)] = copy.copy(pristine)
    (first, *_) = upcoming(job, Seat(0), found, lambda *_: None)
    assert first == TrainBatch(0, 0, 0, 8)
