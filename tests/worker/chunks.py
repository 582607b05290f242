"""Chunks of all models of the program, each trained alone. Each chunk is one unit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppll_cli.job.course import Batch
from ppll_cli.job.job import Job
from ppll_cli.predict.timing import batch_like
from ppll_cli.prepare.subject import recipe_of
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.further import backward_input, backward_weight
from ppll_cli.worker.state import tensors_of
from tests.conftest import own_model, prepared

DATA = ["data=synthetic", "data.size=16", "data.train_samples=8", "data.test_samples=4"]
MODELS = {
    "vit": [
        "model.dim=16",
        "model.depth=2",
        "model.heads=2",
        "model.dropout=0.1",
        "model.drop_path=0.3",
    ],
    "vit mean": ["model.dim=16", "model.depth=1", "model.heads=2", "model.pooling=mean"],
    "resnet32": ["model=resnet32", "model.depth=14"],
    "resnet18": ["model=resnet18", "model.drop_path=0.3"],
    "resnet50": ["model=resnet50"],
    "retinanet": ["model=retinanet", "model.width=8"],
    "retinanet group": ["model=retinanet", "model.width=64", "model.norm=group"],
    "edsr": ["model=edsr", "model.depth=2", "model.width=4"],
    "skipping": own_model("Skipping"),
    "idle": own_model("Idle"),
}
LARGE = ("resnet18", "resnet50", "retinanet group")
CASES = [pytest.param(m, marks=pytest.mark.slow) if m in LARGE else m for m in MODELS]
"""All models as parameters of a test. Large models are marked as slow."""

WIDE = ("layer3.", "layer4.")
CPU = torch.device("cpu")
SIZES = [2, 1]
"""Samples of each micro-batch."""


def job_of(folder: Path, files: dict[str, list[str]], model: str, *more: str) -> Job:
    """Return a job in which each unit is a chunk."""
    data = files.get(model.split()[0], DATA)
    usual = ["batch_size=4", *data, *MODELS[model], *more]
    units = len(prepared(*usual, "schedule=bp").job.names)
    shape = ["schedule=gpipe", f"gpus={units}", "schedule.microbatches=2"]
    return prepared(*usual, *shape, folder=folder).job


def kinds(job: Job) -> list[int]:
    """Return the number of one unit of each kind.

    The first unit is left out, because its input gets no gradient. So are the third and fourth
    group of a ResNet, whose units do the same as those of the second with more channels.
    """
    units = job.units()
    numbers = [n for n in range(1, len(units)) if not units[n].name.startswith(WIDE)]
    return list({recipe_of(units[n], job.specs[n]): n for n in numbers}.values())


def trained(job: Job, number: int, split: bool = False) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return a chunk's state after two steps of two micro-batches, and its input gradients.

    With `split`, each step computes all gradients of inputs before those of parameters.
    """
    chunk = HeldChunk(job, number, job.site(job.units()), CPU)
    into, out = job.routes.into[number], job.routes.out_of(number)
    sent: list[Tensor] = []
    count = range(len(SIZES))
    for step in range(2):
        torch.manual_seed(step)
        chunk.begin(Batch(SIZES, True, step, sum(SIZES)))
        for m in count:
            specs = job.specs[number]
            chunk.tensors.store_inputs(m, {n: batch_like(specs[n], SIZES[m], CPU) for n in specs})
            chunk.forward(m)
            outputs = chunk.tensors[m].values
            names = out.gradients or chunk.units[-1][0].writes
            wanted = [name for name in names if outputs[name].requires_grad]
            gradients = {n: torch.randn(outputs[n].shape).to(outputs[n].dtype) for n in wanted}
            chunk.tensors.store_gradients(m, gradients)
        if split and into.gradients:
            for m in count:
                backward_input(chunk, m)
                sent += chunk.tensors.take_input_gradients(m).values()
            for m in count:
                backward_weight(chunk, m)
        else:
            for m in count:
                chunk.backward(m)
                if into.gradients:
                    sent += chunk.tensors.take_input_gradients(m).values()
        sent += [p.grad.clone() for p in chunk.parameters if p.grad is not None]
        chunk.step(step, None)
        chunk.end()
    return tensors_of([chunk]), sent
