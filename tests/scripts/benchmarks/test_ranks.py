"""The processes that train with torch for a benchmark."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ppll_cli.job.numerics import Numerics, in_force
from scripts.benchmarks import ranks

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class NoSteps:
    """Orders to train no steps at all."""

    def recv(self) -> tuple[int, ...]:
        return ()

    def send(self, obj: object, /) -> None:
        pass


def test_a_rank_computes_with_the_numerics_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, torch's convolutions used TF32, and were compared with true fp32 in our workers."""
    numerics = Numerics("tf32", True)
    job = SimpleNamespace(devices=("cuda:0",), threads=1, numerics=numerics)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(ranks, "Memory", lambda device: SimpleNamespace(peak=lambda: None))
    group = SimpleNamespace(
        init_process_group=lambda *args, **options: None, destroy_process_group=lambda: None
    )
    monkeypatch.setattr(ranks, "dist", group)
    found: list[Any] = []

    def make_trainer(job: object, rank: int) -> Any:
        found.append(in_force(CUDA))

    with numerics.applied(CUDA):
        expected = in_force(CUDA)
    with Numerics("fp32", False).applied(CPU):
        assert in_force(CUDA) != expected
        ranks.serve(make_trainer, cast(Any, job), 0, "a store", NoSteps())
    assert found == [expected]
