"""The same code on CUDA: several workers on one device, and the equalities that hold there."""

import pytest
import torch

from ppll_cli.transport import ring
from tests.conftest import Runner, assert_same, own_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

DATA = ["device=cuda", "oversubscribe=true", "deterministic=true", "data=synthetic", "batch_size=8"]
DATA += ["data.size=8", "data.train_samples=53", "data.test_samples=7", "max_steps=20"]
SGD = ["optim=sgd", "optim.lr=0.05"]
CASE = [*DATA, "model=resnet32", "model.depth=14", *SGD]


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


@pytest.mark.parametrize("schedule", ["ppll", "gpipe", "1f1b"])
def test_transports_carry_the_same_bits(
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    schedule: str,
) -> None:
    """On the device, by way of pinned host memory, or mapped anew; gradients and norms too."""
    case = [f"schedule={schedule}", "gpus=3", *DATA, *SGD, *own_model("Skipping"), "eval_every=1"]
    case += ["optim.clip_norm=0.5"]
    expected = run("transport=queue", *case)
    on_device = run("transport=ring", *case)
    assert "transport=ring" not in caplog.text
    monkeypatch.setattr(ring, "cannot_share", lambda: "a test says so")
    pinned = run("transport=ring", *case)
    assert "transport=ring: a test says so; pinned host memory is used" in caplog.text
    for other in (on_device, pinned):
        assert_same(other.tensors(), expected.tensors())
        assert other.summary["test"] == expected.summary["test"]
        assert other.summary["edges"] == expected.summary["edges"]
