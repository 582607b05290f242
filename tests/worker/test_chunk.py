"""What a worker computes of a chunk: local learning keeps every gradient inside its module."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppll_cli.job.course import Batch
from ppll_cli.job.job import Job
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import Unit
from ppll_cli.tasks.task import Task
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.further import Norms, backward_input, backward_weight
from tests.conftest import own_model
from tests.worker.inside import job_inside

METHODS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/local").glob("*.yaml"))
CHOICES = [[f"local={method}"] for method in METHODS]
CHOICES += [["local=infopro", "local.loss=contrastive"], ["fba=on"], ["fba=on", "fba.fusion=add"]]
CHOICES += [["fba=on", "fba.shared_head=false"], ["fba=on", "fba.features=1"]]
CHOICES += [["fba=on", "fba.trains=probe"], ["fba=on", "fba.join=input"]]
MODELS = {
    "vit": ["model.dim=16", "model.depth=4", "model.heads=2", "model.patch=8"],
    "resnet": ["model=resnet32", "model.depth=14"],
}
DATA = ["data=synthetic", "data.size=16", "data.train_samples=64", "data.test_samples=8"]
# Weight decay would move what has no gradient.
SGD = ["optim=sgd", "optim.lr=0.1", "optim.weight_decay=0", "optim.schedule=constant"]
BATCH = 16

ON_VIT = [*CHOICES[::2], ["local=vit_blocks"]]
"""What is always tried on a ViT, and on a ResNet as a slow test; the rest is tried vice versa."""

FURTHER = [["fba=on", f"fba.{key}"] for key in ("fusion=add", "shared_head=false", "features=1")]
FURTHER += [[f"local={method}"] for method in ("auglocal", "dgl", "fba", "manpp", "vit_blocks")]
"""What is tried only in slow tests: it computes little that no other choice computes."""

CASES = [
    pytest.param(
        *(model, choice),
        id=" ".join([model, *choice]),
        marks=[pytest.mark.slow] * ((model == "vit") != (choice in ON_VIT) or choice in FURTHER),
    )
    for model in MODELS
    for choice in CHOICES
    if model == "vit" or choice != ["local=vit_blocks"]
]


def job_of(*overrides: str) -> Job:
    return job_inside(Path("unused"), f"batch_size={BATCH}", *DATA, *SGD, *overrides)


def held(job: Job, stage: int = 0) -> list[HeldChunk]:
    """The chunks of a stage."""
    site = job.site(job.units())
    return [HeldChunk(job, n, site, torch.device("cpu")) for n in job.layout.of(stage)]


def whole_model(model: str, choice: list[str], modules: int = 4) -> list[HeldChunk]:
    """All modules in one stage, as `ll` has them."""
    where = ["schedule=ll", "gpus=1", f"local.modules={modules}"]
    return held(job_of(*MODELS[model], *choice, *where))


def batches(count: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        image = torch.rand(BATCH, 3, 16, 16, generator=generator)
        yield {"image": image, "label": torch.randint(10, (BATCH,), generator=generator)}


def begin(chunks: list[HeldChunk], step: int = 0) -> None:
    for chunk in chunks:
        chunk.begin(Batch([BATCH], True, step, BATCH))


def forward(chunks: list[HeldChunk], number: int, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a module hands on, given what came to it."""
    chunks[number].tensors.store_inputs(0, batch)
    chunks[number].forward(0)
    return {} if chunks[number] is chunks[-1] else chunks[number].tensors.take_outputs(0)


def train(chunks: list[HeldChunk], steps: int) -> None:
    for step, batch in enumerate(batches(steps)):
        begin(chunks, step)
        values = batch
        for number, chunk in enumerate(chunks):
            values = forward(chunks, number, values)
            assert not any(tensor.requires_grad for tensor in values.values())
            assert bool(values) == (chunk is not chunks[-1])
            assert not chunk.job.routes.into[number].gradients
            chunk.loss(0)
            chunk.backward(0)
            chunk.step(step, None)
        for chunk in chunks:
            chunk.end()


def named(chunk: HeldChunk) -> dict[str, nn.Parameter]:
    return {
        f"{chunk.place.module}.{index}.{name}": parameter
        for index, network in enumerate(chunk.networks)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize(("model", "choice"), CASES)
def test_a_module_learns_by_its_own_loss_alone(model: str, choice: list[str]) -> None:
    """Every parameter moves, and whenever a module steps only its own parameters have gradients.

    Three steps, because a ViT's head starts at zero. What leaves a module has no gradient either,
    as `train` checks.
    """
    chunks = whole_model(model, choice)
    stepped = []

    def watch(chunk: HeldChunk) -> None:
        assert chunk.optimizer is not None
        step = chunk.optimizer.step

        def checked(rate: float, nonfinite: Tensor | None = None) -> None:
            for other in chunks:
                touched = [n for n, p in named(other).items() if p.grad is not None]
                assert bool(touched) == (other is chunk), touched
            stepped.append(chunk.place.module)
            step(rate, nonfinite)

        chunk.optimizer.step = checked  # type: ignore[method-assign]

    before = {n: p.detach().clone() for c in chunks for n, p in named(c).items()}
    for chunk in chunks:
        watch(chunk)
    train(chunks, steps=3)
    assert stepped == [*range(len(chunks))] * 3
    after = {name: p for chunk in chunks for name, p in named(chunk).items()}
    assert [name for name in before if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
def test_gradients_that_pass_through_are_added_to_the_units_own(halves: bool) -> None:
    """A skip that the chunk reads as well: its gradient is what came back, and its own share."""
    job = job_of(*own_model("Skipping"), "schedule=gpipe", "gpus=3", "schedule.microbatches=1")
    (chunk,) = held(job, 1)
    routes = job.routes
    assert "skip" in {*routes.into[1].gradients} & {*routes.out_of(1).gradients}
    begin([chunk])
    tensors = {name: torch.rand(BATCH, 8) for name in routes.into[1].gradients}
    chunk.tensors.store_inputs(0, {**tensors, "label": torch.zeros(BATCH, dtype=torch.int64)})
    chunk.forward(0)
    chunk.tensors.take_outputs(0)
    received = {name: torch.rand(BATCH, 8) for name in routes.out_of(1).gradients}
    kept = {name: gradient.clone() for name, gradient in received.items()}
    chunk.tensors.store_gradients(0, received)
    if halves:
        backward_input(chunk, 0)
    else:
        chunk.backward(0)
    sent = chunk.tensors.take_input_gradients(0)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    x = leaves["x"]
    for _, network in chunk.units:
        x = network(x, leaves["skip"])
    own = torch.autograd.grad(x, [leaves["x"], leaves["skip"]], kept["x"])
    torch.testing.assert_close(sent["x"], own[0])
    torch.testing.assert_close(sent["skip"], own[1] + kept["skip"])
    # A received gradient may be sent on as it lies in its slot, but is never written to.
    assert all(torch.equal(received[name], kept[name]) for name in received)


@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
def test_an_input_that_nothing_depends_on_has_no_gradient(halves: bool) -> None:
    """As where a loss reads no output. The stage before gets a message without this tensor."""
    job = job_of(*own_model("Skipping"), "schedule=gpipe", "gpus=2", "schedule.microbatches=1")
    (chunk,) = held(job, 1)
    begin([chunk])
    tensors = {name: torch.rand(BATCH, 8) for name in job.routes.into[1].gradients}
    chunk.tensors.store_inputs(0, {**tensors, "label": torch.zeros(BATCH, dtype=torch.int64)})
    chunk.forward(0)
    chunk.tensors.store_gradients(0, {})  # in place of the loss
    if halves:
        backward_input(chunk, 0)
        backward_weight(chunk, 0)
    else:
        chunk.backward(0)
    assert all(p.grad is None for p in chunk.parameters)
    assert chunk.tensors.take_input_gradients(0) == {}


class _Halves(nn.Module):
    """A criterion's head that reads the feature and what earlier modules exported."""

    def __init__(self, task: Task, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(task.smallest_head(shape) for shape in shapes)

    def forward(self, *features: Tensor) -> Tensor:
        heads = zip(self.heads, features, strict=True)
        return torch.stack([head(x) for head, x in heads]).sum(dim=0)


class WholeMaps(LocalMethod):
    """A user's own method: whole maps of earlier modules, not even detached by itself."""

    def criterion(self, site: Site) -> Criterion:
        """One head for each map."""
        earlier = [site.at(module) for module in range(site.module)]
        names = (site.feature, *(f"map.{other.module}" for other in earlier))
        shapes = [site.spec.shape, *(other.spec.shape for other in earlier)]
        return Criterion(_Halves(site.task, shapes), names, site.task)

    def exports(self, site: Site) -> list[Unit]:
        """The map itself."""
        return [Unit(f"map.{site.module}", nn.Identity, (site.feature,), (f"map.{site.module}",))]


def test_a_users_own_method_needs_only_one_class() -> None:
    choice = ["local._target_=tests.worker.test_chunk.WholeMaps"]
    chunks = whole_model("resnet", choice)
    train(chunks, steps=2)
    (batch,) = batches(1)
    begin(chunks)
    values = forward(chunks, 0, batch)
    assert torch.equal(values["map.0"], values["x"])
    assert not values["map.0"].requires_grad


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
@pytest.mark.parametrize(
    "norm",
    ["optim.clip_norm=null", "optim.clip_norm=1", "log_grad_norm=true"],
    ids=["unused", "clipped", "logged"],
)
@pytest.mark.parametrize("schedule", ["ll", "bp"])
def test_a_step_on_cuda_reads_nothing_from_the_device(
    schedule: str, norm: str, nonfinite: str
) -> None:
    """The device's way, on CPU tensors; what is skipped is seen afterwards."""
    case = [norm, f"optim.nonfinite={nonfinite}", *MODELS["vit"]]
    job = job_of(f"schedule={schedule}", "gpus=1", *case)
    chunks = held(job)
    norms = Norms(len(job.features), chunks, torch.device("cpu"))
    for chunk in chunks:
        chunk.nonfinite._reads_at_once = False
    with _Reads() as reads:  # type: ignore[no-untyped-call]
        for step, batch in enumerate(batches(2)):
            begin(chunks, step)
            (chunk,) = chunks
            forward(chunks, 0, batch)
            chunk.loss(0)
            chunk.backward(0)
            if job.place(0, 1).norms:
                norms.add()
            chunk.step(step, norms.total())
            chunk.end()
            norms.end()
    assert reads.count == 0
    needed = (norm, nonfinite) != ("optim.clip_norm=null", "stop")
    assert job.place(0, 1).norms == (schedule == "bp" and needed)
    assert all((chunk.squared_norm is not None) == needed for chunk in chunks)
    for chunk in chunks:
        assert list(chunk.nonfinite.skipped) == ([0, 1] if nonfinite == "skip" else [])
        assert not any(chunk.nonfinite.skipped.values())


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a tensor's value is read by the host: `item`, `float`, `bool`, `tolist`."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_what_a_unit_draws_on_any_device_depends_on_its_seed_alone() -> None:
    """Another module may have drawn from the CPU's generator before, on a stage that holds both."""
    chunks = whole_model("vit", ["local=greedy"])
    other = torch.Generator()  # stands for the generator of a second device
    chunks[0]._generators.append(other)
    (batch,) = batches(1)

    def drawn() -> list[Tensor]:
        begin(chunks)
        forward(chunks, 0, batch)
        return [torch.rand(3), torch.rand(3, generator=other)]

    first = drawn()
    torch.rand(7), torch.rand(5, generator=other)
    assert all(map(torch.equal, first, drawn()))


def test_micro_batches_of_all_replicas_have_the_gradient_of_the_mean_loss() -> None:
    """Each micro-batch counts by its samples, although all are of different sizes.

    Comparing schedules cannot show this: all of them would have the same wrong weights.
    """
    plain = ["model.dropout=0", "model.drop_path=0", "schedule=bp", "gpus=1"]
    (chunk,) = held(job_of(*MODELS["vit"], *plain))
    torch.manual_seed(0)
    with torch.no_grad():  # the head starts at zero, and lets no gradient through
        for parameter in chunk.parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))
    (batch,) = batches(1)

    def gradients(*replicas: list[int]) -> list[Tensor]:
        """The sum of the gradients of all replicas, given their micro-batches."""
        assert chunk.optimizer is not None
        chunk.optimizer.zero_grad()
        rest = batch
        for sizes in replicas:
            chunk.begin(Batch(sizes, True, 0, BATCH))
            for m, size in enumerate(sizes):
                chunk.tensors.store_inputs(
                    m, {name: tensor[:size] for name, tensor in rest.items()}
                )
                rest = {name: tensor[size:] for name, tensor in rest.items()}
                chunk.forward(m)
                chunk.loss(m)
                chunk.backward(m)
            chunk.end()
        return [p.grad.clone() for p in chunk.parameters if p.grad is not None]

    whole = gradients([BATCH])
    for found, expected in zip(gradients([6, 4], [5, 1]), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)  # a sum in another order


def test_a_report_of_a_failure_leaves_out_what_is_no_tensor() -> None:
    """The report itself once failed, and the message did not have the root cause."""
    (chunk,) = held(job_of(*MODELS["vit"], "schedule=ll", "gpus=1", "local.modules=1"))
    kept: Any = SimpleNamespace(values={"x": None, "y": torch.zeros(2, 3)})
    chunk.tensors._held[0] = kept
    assert chunk.tensors.shapes() == {"y": [2, 3]}
