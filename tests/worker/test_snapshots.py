"""A worker that dies during a snapshot leaves a complete snapshot: the new one or the old one."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppll_cli.config import settings
from ppll_cli.job.job import Job
from ppll_cli.prepare.preparation import prepare
from ppll_cli.worker import snapshots
from ppll_cli.worker.snapshots import _Buffer
from tests.conftest import assert_same, compose_config
from tests.worker.dying import Journals
from tests.worker.inside import Died, execute

SMALL = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
SMALL += ["batch_size=8", "epochs=2", "threads=1", "device=cpu", "model.dim=16", "model.depth=2"]
SMALL += ["model.heads=2", "recover=stage", "recover.every=2"]


def _job(folder: Path) -> Job:
    config, _ = compose_config(SMALL)
    return prepare(settings.parse(config), str(folder)).job


@pytest.mark.parametrize("moment", ["while it copies", "before it is the last", "afterwards"])
def test_a_worker_may_die_in_a_snapshot(
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


def test_a_buffer_holds_any_tensors(tmp_path: Path) -> None:
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
    assert [*found.names] == [*tensors]
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].stride() == tensor.stride()


def test_full_memory_is_an_error_and_not_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots.os, "posix_fallocate", full)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="No space left"):
        _Buffer(tmp_path / "buffer").fill({"x": torch.ones(2)})
