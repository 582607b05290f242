"""A worker that dies during a snapshot leaves a complete snapshot: the new one or the old one."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppll_cli.job.job import Job
from ppll_cli.job.snapshots import MARGIN, messages_between, snapshot_bytes
from ppll_cli.pipeline.rules import Channel
from ppll_cli.transport.journal import JournalSender, JournalTransport
from ppll_cli.transport.slots import layout_bytes, layout_of
from ppll_cli.worker import snapshots, worker
from ppll_cli.worker.snapshots import Progress, Snapshots, _Buffer
from ppll_cli.worker.state import tensors_of
from tests.conftest import assert_same, prepared
from tests.worker.dying import Journals
from tests.worker.inside import Died, execute
from tests.worker.test_chunk import held, job_of

SMALL = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
SMALL += ["batch_size=8", "epochs=2", "threads=1", "device=cpu", "model.dim=16", "model.depth=2"]
SMALL += ["model.heads=2", "recover=stage", "recover.every=2"]


def _job(folder: Path) -> Job:
    return prepared(*SMALL, folder=folder).job


@pytest.mark.parametrize(
    "moment",
    [
        "while it copies",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("before it is the last", "afterwards")),
    ],
)
def test_a_worker_that_dies_during_a_snapshot_does_not_change_the_results(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all snapshots of all stages, every third one is interrupted."""
    job = _job(tmp_path / "run")
    expected = execute(job, Journals(job, tmp_path / "unhurt"))
    calls, deaths = 0, 0
    put, fill = os.replace, _Buffer.fill

    def due() -> bool:
        nonlocal calls, deaths
        calls += 1
        deaths += calls % 3 == 0
        return calls % 3 == 0

    def put_or_die(new: Any, old: Any) -> None:
        if new.name != "last.new":
            put(new, old)
            return
        dies = due()
        if dies and moment == "before it is the last":
            raise Died
        put(new, old)
        if dies:
            raise Died

    def fill_or_die(buffer: _Buffer, tensors: Mapping[str, Tensor]) -> Any:
        if due():
            fill(buffer, dict(list(tensors.items())[: len(tensors) // 2]))
            raise Died
        return fill(buffer, tensors)

    if moment == "while it copies":
        monkeypatch.setattr(_Buffer, "fill", fill_or_die)
    else:
        monkeypatch.setattr(snapshots.os, "replace", put_or_die)  # type: ignore[attr-defined]
    here = replace(job, run_dir=str(tmp_path / "again"))
    found = execute(here, Journals(here, tmp_path / "hurt"))
    assert deaths >= 3
    assert_same(found.tensors, expected.tensors)
    assert (found.test, found.train) == (expected.test, expected.train)


@pytest.mark.parametrize(
    ("snapshot_s", "message_s", "expected"),
    [
        (0.25, 5.0, 5),  # 5 messages are 100 times as long as a snapshot
        (0.01, 5.0, 1),
        (0.3, 5.0, 6),
        (9.0, 5.0, 16),
        (0.1, 0.0, 16),  # a clock that stands still
    ],
)
def test_the_interval_is_such_that_snapshots_take_a_hundredth_of_the_time(
    snapshot_s: float, message_s: float, expected: int
) -> None:
    """A stage saves as often as that allows, and as seldom as its channels have slots for."""
    assert messages_between(snapshot_s, message_s, 16) == expected


def progress_with(trace: list[Any]) -> Progress:
    return Progress(1, 1, training=True, trace=trace)


def snapshots_of(folder: Path, fixed: bool = False) -> tuple[Snapshots, JournalSender]:
    """Return the snapshots of a stage with one channel, and its sender."""
    sender = JournalTransport(depth=1).channel(20, 512)[0]
    assert isinstance(sender, JournalSender)
    links: Any = SimpleNamespace(senders={Channel(0, 1, "activations", 1): sender}, receivers={})
    return Snapshots(str(folder), 16, fixed, links), sender


class Counted:
    """A part of a trace that counts how often it is pickled."""

    times = 0

    def __reduce__(self) -> tuple[type["Counted"], tuple[()]]:
        Counted.times += 1
        return Counted, ()


def test_each_part_of_a_trace_is_pickled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counted, "times", 0)
    made, _ = snapshots_of(tmp_path)
    trace = [Counted(), Counted()]
    for _ in range(3):
        made.save({}, progress_with(trace))
    assert Counted.times == 2
    found = made.load({})
    assert found is not None
    assert [type(each).__name__ for each in found.trace] == ["Counted", "Counted"]
    made.save({}, progress_with([Counted()]))  # a longer trace of a later segment, in a real run
    found = made.load({})
    assert found is not None
    assert len(found.trace) == 1


def test_a_users_random_numbers_go_on_after_a_snapshot(tmp_path: Path) -> None:
    made, _ = snapshots_of(tmp_path)

    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    made.save({}, progress_with([]))
    expected = drawn()
    drawn()
    made.load({})
    assert drawn() == expected


def test_the_wait_for_queued_work_does_not_count_as_snapshot_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    @contextmanager
    def noted(what: str) -> Iterator[None]:
        calls.append(what)
        yield

    moment = SimpleNamespace(wait=lambda: calls.append("wait"))
    monkeypatch.setattr(worker, "Moment", lambda device: moment)
    made: Any = SimpleNamespace(
        device=torch.device("cpu"),
        links=SimpleNamespace(pulse=SimpleNamespace(begin=lambda *_: None)),
        recorder=SimpleNamespace(span=noted),
        _save_snapshot=lambda _: calls.append("save"),
    )
    timed: Any = SimpleNamespace(timed=lambda: noted("timed"))
    worker.Worker._take_snapshot(made, timed)
    assert calls == ["wait", "snapshot", "timed", "save"]


class Clock:
    """A clock that runs only while the test lets it."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(("fixed", "expected"), [(False, [16, 16, 4, 4]), (True, [16] * 4)])
def test_the_interval_follows_the_measured_snapshots_unless_the_user_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool, expected: list[int]
) -> None:
    clock = Clock()
    monkeypatch.setattr(snapshots, "perf_counter", clock)
    made, sender = snapshots_of(tmp_path, fixed)
    progress = progress_with([])

    def batches_until_due() -> int:
        count = 0
        while not made.due:
            clock.now_s += 1.0
            sender.position += 1
            count += 1
        with made.timed():
            clock.now_s += 0.035
            made.save({}, progress)
        return count

    # The first snapshot does not count: it takes the memory too.
    assert [batches_until_due() for _ in range(4)] == expected


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_the_memory_planned_for_a_snapshot_includes_buffers_and_alignment(
    stage: int, optim: str
) -> None:
    """ResNet-32 has many small tensors, and BatchNorm keeps statistics with their averages."""
    job = job_of("model=resnet32", "schedule=ppll", "gpus=2", f"optim={optim}", "optim.ema=0.9")
    chunks = held(job, stage)
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for chunk in chunks:
        chunk.step(0, None)
    size = layout_bytes(layout_of(tensors_of(chunks)))
    counted = snapshot_bytes(job, stage, sum(each.numel() for each in parameters))
    assert counted < size <= MARGIN * counted


def test_a_buffer_keeps_values_and_strides_of_every_kind_of_tensor(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "numbers": torch.arange(5),
        "last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "half": torch.rand(3).bfloat16(),
        "double": torch.rand(7, dtype=torch.float64),
    }
    first = _Buffer(tmp_path / "buffer")
    first.fill({"small": torch.ones(2)})
    layout = first.fill(tensors)
    found = _Buffer(tmp_path / "buffer").read(layout)  # as a new process maps it
    assert [*found] == [*tensors]
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].stride() == tensor.stride()


def test_full_shared_memory_raises_an_error_instead_of_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots.os, "posix_fallocate", full)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="No space left"):
        _Buffer(tmp_path / "buffer").fill({"x": torch.ones(2)})
