"""The same code on CUDA: several workers on one device, and results that must be equal there."""

import pytest
import torch

from ppll_cli.job.course import TrainBatch
from ppll_cli.job.numerics import Numerics
from ppll_cli.transport import ring
from ppll_cli.worker.worker import Worker
from scripts.benchmarks import host
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
    first = pipelined.summary["stages"][0]
    assert first["peak_reserved_bytes"] >= first["peak_memory_bytes"] > 0
    assert_same(pipelined.tensors(), expected.tensors())


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_pipelines_are_accumulated_back_propagation(run: Runner, schedule: str) -> None:
    case = [*CASE, "schedule.microbatches=3", "optim.clip_norm=0.5"]
    expected = run("schedule=bp", *case).tensors()
    assert_same(run(f"schedule={schedule}", "gpus=3", *case).tensors(), expected)


@pytest.mark.parametrize("schedule", ["ppll", "gpipe", "1f1b"])
def test_transports_carry_the_same_bits(
    run: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, schedule: str
) -> None:
    """Messages stay on the device, go through pinned host memory, or are mapped for each message.

    Gradients and norms are sent too.
    """
    case = [f"schedule={schedule}", "gpus=3", *DATA, *SGD, *own_model("Skipping"), "eval_every=1"]
    case += ["optim.clip_norm=0.5"]
    expected = run("transport=queue", *case)
    on_device = run("transport=ring", *case)
    assert "transport=ring" not in caplog.text
    no_ipc = run("transport=ring", "transport.ipc=false", *case)
    monkeypatch.setattr(ring, "cannot_share", lambda *_: "a test says so")
    pinned = run("transport=ring", *case)
    assert "transport=ring: a test says so; using pinned host memory instead" in caplog.text
    for other in (on_device, no_ipc, pinned):
        assert_same(other.tensors(), expected.tensors())
        assert other.summary["test"] == expected.summary["test"]
        assert other.summary["edges"] == expected.summary["edges"]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_summary_records_the_numerics_of_the_device(run: Runner, precision: str) -> None:
    found = run("schedule=ppll", "gpus=2", *CASE, f"precision={precision}").summary["numerics"]
    assert found["tf32_matmul"] == found["tf32_convolution"] == (precision == "tf32")
    assert found["deterministic"]
    assert not found["cudnn_benchmark"]


def test_fp32_is_true_fp32_in_convolutions_and_matrix_products() -> None:
    """With 10 bits of mantissa, TF32 rounds every factor to 1.

    So its products are wrong by a part of 5e-4. In fp32 the sums are wrong by less than 1e-4.
    """
    device, factor = torch.device("cuda", 0), 1 + 2**-12
    image = torch.full((4, 64, 16, 16), factor, device=device)
    kernel = torch.full((64, 64, 3, 3), factor, device=device)
    matrix = torch.full((512, 512), factor, device=device)
    convolve, multiply = torch.nn.functional.conv2d, torch.matmul
    with Numerics("fp32", False).applied(device):
        convolved, multiplied = convolve(image, kernel), multiply(matrix, matrix)
    exact = convolve(image.double(), kernel.double()), multiply(matrix.double(), matrix.double())
    for found, expected in zip((convolved, multiplied), exact, strict=True):
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("optim", [["optim.clip_norm=1"], ["optim.nonfinite=skip"], SGD])
def test_a_training_step_never_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, optim: list[str]
) -> None:
    """If a step or a report reads from the device, the host waits, and the device becomes idle."""
    train = Worker._train

    def guarded(worker: Worker, item: TrainBatch) -> None:
        # The first steps create state that later steps reuse.
        torch.cuda.set_sync_debug_mode("error" if item.step > 2 else "default")
        try:
            train(worker, item)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Worker, "_train", guarded)
    row = host.measure([*host.OVERRIDES, *optim, "device=cuda"], blocks=2)
    assert row["steps"] == 2 * host.BLOCK
