"""The same code on CUDA: several workers on one device, and the equalities that hold there."""

import pytest
import torch

from tests.conftest import Runner, assert_same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CASE = ["device=cuda", "oversubscribe=true", "deterministic=true", "data=synthetic", "batch_size=8"]
CASE += ["data.size=8", "data.train_samples=53", "data.test_samples=7", "max_steps=20"]
CASE += ["model=resnet32", "model.depth=14", "optim=sgd", "optim.lr=0.05"]


@pytest.mark.parametrize("gpus", [1, 2, 3])
def test_ppll_is_sequential_local_learning(run: Runner, gpus: int) -> None:
    local = ["local=dgl", "local.modules=4"]
    expected = run("schedule=ll", "gpus=1", *CASE, *local)
    pipelined = run("schedule=ppll", f"gpus={gpus}", *CASE, *local)
    assert pipelined.summary["emulated"] == (gpus > torch.cuda.device_count())
    assert pipelined.summary["stages"][0]["peak_memory_bytes"] > 0
    assert_same(pipelined.tensors(), expected.tensors())


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_pipelines_are_accumulated_back_propagation(run: Runner, schedule: str) -> None:
    case = [*CASE, "schedule.microbatches=3", "optim.clip_norm=0.5"]
    expected = run("schedule=bp", *case).tensors()
    assert_same(run(f"schedule={schedule}", "gpus=3", *case).tensors(), expected)
