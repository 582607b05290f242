"""Training and evaluation on a fake CUDA device: all tensors are there, and the host never waits.

Fake tensors have shapes and devices, but no data, so the tests need no CUDA device. Torch refuses
to read a fake tensor's value, or to compute with tensors of two devices. It computes no backward
passes on a device that does not exist.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ppll_cli.job.course import Batch
from ppll_cli.predict.timing import batch_like
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.further import measure
from tests.no_waiting import NoWaiting
from tests.worker.inside import job_inside
from tests.worker.test_chunk import CASES, held, whole_model

CUDA = torch.device("cuda", 0)
SAMPLES = 4

# Fake tensors have no address. It is used to find tensors that share memory.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


@pytest.fixture(autouse=True)
def no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "backward", lambda _: None)


def move(chunks: Sequence[HeldChunk]) -> None:
    """Replace the networks' parameters and buffers by fake ones on CUDA."""
    moved: dict[Tensor, Tensor] = {}  # networks may share parameters

    def there(tensor: Tensor) -> Tensor:
        if tensor not in moved:
            fake = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA
            )
            is_weight = isinstance(tensor, nn.Parameter)
            moved[tensor] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
        return moved[tensor]

    for chunk in chunks:
        for layer in (layer for network in chunk.networks for layer in network.modules()):
            for tensors in (layer._parameters, layer._buffers):
                found = {name: there(t) for name, t in tensors.items() if t is not None}
                tensors.update(found)  # type: ignore[arg-type]
        for name in ("parameters", "unit_parameters", "unit_weights"):
            vars(chunk).pop(name, None)  # lists of the old parameters
        chunk.device = CUDA
        chunk.nonfinite._reads_at_once = False


def compute(chunks: Sequence[HeldChunk], training: bool) -> None:
    """Compute forward passes and losses of a batch, and check where the results are."""
    specs = chunks[0].job.specs[0]
    values = {name: batch_like(spec, SAMPLES, CUDA) for name, spec in specs.items()}
    for chunk in chunks:
        chunk.begin(Batch([SAMPLES], training, samples=SAMPLES))
        chunk.tensors.store_inputs(0, values)
        chunk.forward(0)
        if chunk is not chunks[-1]:
            values = chunk.tensors.take_outputs(0)
        if training:
            chunk.loss(0)
        else:
            measure(chunk, 0, "test")
        sums = chunk.sums["train" if training else "test"]
        assert isinstance(sums.loss, Tensor)
        assert {sums.loss.device, sums.rows.device} == {CUDA}
        chunk.end()


@pytest.mark.parametrize(("model", "choice"), CASES)
def test_classification_stays_on_the_device(model: str, choice: list[str]) -> None:
    chunks = whole_model(model, choice, modules=3)
    with FakeTensorMode(), NoWaiting(CUDA):
        move(chunks)
        compute(chunks, training=True)
        compute(chunks, training=False)


@pytest.mark.parametrize(
    ("model", "choice"),
    [
        ("edsr", "fba=on"),
        ("retinanet", "local=man"),
        pytest.param("retinanet", "fba=on", marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in product(["retinanet", "edsr"], ["local=greedy", "local=fba"])
        ),
    ],
)
def test_other_tasks_stay_on_the_device(
    tmp_path: Path, files: dict[str, list[str]], model: str, choice: str
) -> None:
    """Evaluation waits for the device, because the number of detections depends on values."""
    size = "model.depth=2" if model == "edsr" else "model.depth=18"
    where = ["batch_size=4", f"model={model}", "model.width=8", "schedule=ll", "gpus=1", size]
    chunks = held(job_inside(tmp_path, *files[model], *where, choice, "local.modules=2"))
    with FakeTensorMode(), NoWaiting(CUDA):
        move(chunks)
        compute(chunks, training=True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda there: there + torch.zeros(2),
        lambda there: there.sum().item(),
        lambda there: there[there > 0],
        lambda there: torch.zeros(2).to(there.device),
        lambda there: there.new_tensor([1.0, 2.0]),
    ],
    ids=["two devices", "item", "mask", "copy", "new tensor"],
)
def test_the_fake_device_finds_faults(wrong: object) -> None:
    assert callable(wrong)
    with (
        FakeTensorMode(),
        NoWaiting(CUDA),
        pytest.raises(Exception, match=r"devices|_local_scalar_dense|nonzero|waits"),
    ):
        wrong(torch.zeros(2, device=CUDA))
