"""What a stage computes: local learning keeps every gradient inside its module."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ppll_cli.runtime.stage import Stage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppll_cli import settings
from ppll_cli.errors import AttachedError
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import Unit
from ppll_cli.runtime.chunk import StageChunk
from ppll_cli.runtime.prepare import prepare
from ppll_cli.tasks.task import Task
from tests.conftest import compose_config, own_model

METHODS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/local").glob("*.yaml"))
CHOICES = [[f"local={method}"] for method in METHODS]
CHOICES += [["local=infopro", "local.loss=contrastive"], ["fba=on"], ["fba=on", "fba.fusion=add"]]
CHOICES += [["fba=on", "fba.shared_head=false"], ["fba=on", "fba.features=1"]]
MODELS = {
    "vit": ["model.dim=16", "model.depth=4", "model.heads=2", "model.patch=8"],
    "resnet": ["model=resnet32", "model.depth=14"],
}
DATA = ["data=synthetic", "data.size=16", "data.train_samples=64", "data.test_samples=8"]
# Weight decay would move what has no gradient.
SGD = ["optim=sgd", "optim.lr=0.1", "optim.weight_decay=0", "optim.schedule=constant"]
BATCH = 16

CASES = [
    pytest.param(model, choice, id=" ".join([model, *choice]))
    for model in MODELS
    for choice in CHOICES
    if model == "vit" or choice != ["local=vit_blocks"]
]


def whole_model(model: str, choice: list[str], modules: int = 6) -> Stage:
    """All modules in one stage, as `ll` has them."""
    where = ["device=cpu", "schedule=ll", "gpus=1", f"batch_size={BATCH}"]
    overrides = [*MODELS[model], *choice, f"local.modules={modules}", *DATA, *SGD, *where]
    config, _ = compose_config(overrides)
    job = prepare(settings.parse(config), "unused").job
    return Stage(job, 0, torch.device("cpu"))


def batches(count: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        image = torch.rand(BATCH, 3, 16, 16, generator=generator)
        yield {"image": image, "label": torch.randint(10, (BATCH,), generator=generator)}


def train(stage: Stage, steps: int) -> None:
    for step, batch in enumerate(batches(steps)):
        stage.begin(training=True, sizes=[BATCH], step=step)
        stage.put(0, batch)
        for chunk in stage.chunks:
            stage.forward(chunk, 0)
            stage.local_backward(chunk, 0, stage.local_loss(chunk, 0))
            stage.local_step(chunk)
        stage.end()


def named(chunk: StageChunk) -> dict[str, nn.Parameter]:
    return {
        f"{chunk.place.module}.{index}.{name}": parameter
        for index, network in enumerate(chunk.networks)
        for name, parameter in network.named_parameters()
    }


@pytest.mark.parametrize(("model", "choice"), CASES)
def test_every_parameter_moves(model: str, choice: list[str]) -> None:
    """Of the backbone and of the auxiliary networks; a ViT's head starts at zero, so in 3 steps."""
    stage = whole_model(model, choice)
    before = {n: p.detach().clone() for c in stage.chunks for n, p in named(c).items()}
    train(stage, steps=3)
    after = {name: p for chunk in stage.chunks for name, p in named(chunk).items()}
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still


@pytest.mark.parametrize(("model", "choice"), CASES)
def test_every_gradient_stays_inside_its_module(model: str, choice: list[str]) -> None:
    """Whenever a module's optimizer steps, only this module's parameters have gradients."""
    stage = whole_model(model, choice)
    stepped = []

    def watch(chunk: StageChunk) -> None:
        assert chunk.optimizer is not None
        step = chunk.optimizer.step

        def checked(rate: float, nonfinite: Tensor | None = None) -> None:
            for other in stage.chunks:
                touched = [n for n, p in named(other).items() if p.grad is not None]
                assert bool(touched) == (other is chunk), touched
            stepped.append(chunk.place.module)
            step(rate, nonfinite)

        chunk.optimizer.step = checked  # type: ignore[method-assign]

    for chunk in stage.chunks:
        watch(chunk)
    train(stage, steps=1)
    assert stepped == list(range(6))


@pytest.mark.parametrize(("model", "choice"), CASES)
def test_nothing_that_leaves_a_module_has_a_gradient(model: str, choice: list[str]) -> None:
    stage = whole_model(model, choice)
    (batch,) = batches(1)
    stage.begin(training=True, sizes=[BATCH])
    stage.put(0, batch)
    for chunk in stage.chunks:
        stage.forward(chunk, 0)
        assert any(tensor.requires_grad for tensor in stage.values[0].values())
        stage.local_backward(chunk, 0, stage.local_loss(chunk, 0))
        stage.local_step(chunk)
        assert not any(tensor.requires_grad for tensor in stage.values[0].values())


def test_what_is_not_detached_is_noticed() -> None:
    stage = whole_model("resnet", ["local=greedy"])
    (batch,) = batches(1)
    stage.begin(training=True, sizes=[BATCH])
    stage.put(0, batch)
    stage.forward(stage.chunks[0], 0)  # and no local update, which would detach
    with pytest.raises(AttachedError, match=r"^module 1 would read what is not detached: x$"):
        stage.forward(stage.chunks[1], 0)


def test_gradients_that_leave_do_not_lie_in_the_slot_of_those_that_came() -> None:
    """Of a tensor that only passes through, that is; the slot is given back before it is sent."""
    where = ["device=cpu", "schedule=gpipe", "gpus=3", f"batch_size={BATCH}"]
    config, _ = compose_config([*own_model("Skipping"), *DATA, *SGD, *where])
    stage = Stage(prepare(settings.parse(config), "unused").job, 1, torch.device("cpu"))
    assert stage.inputs_edge is not None
    assert stage.outputs_edge is not None
    assert "skip" in stage.inputs_edge.gradients
    assert "skip" in stage.outputs_edge.gradients
    stage.begin(training=True, sizes=[BATCH])
    tensors = {name: torch.rand(BATCH, 8) for name in stage.inputs_edge.gradients}
    stage.put(0, {**tensors, "label": torch.zeros(BATCH, dtype=torch.int64)})
    stage.forward(stage.chunks[0], 0)
    received = {name: torch.rand(BATCH, 8) for name in stage.outputs_edge.gradients}
    stage.backward(0, received)
    slots = {gradient.data_ptr() for gradient in received.values()}
    assert not slots & {gradient.data_ptr() for gradient in stage.input_gradients(0).values()}


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


def test_a_users_own_method_is_one_class() -> None:
    choice = ["local._target_=tests.runtime.test_stage.WholeMaps"]
    stage = whole_model("resnet", choice)
    train(stage, steps=2)
    values: Mapping[str, Tensor] = {}
    (batch,) = batches(1)
    stage.begin(training=True, sizes=[BATCH])
    stage.put(0, batch)
    stage.forward(stage.chunks[0], 0)
    values = stage.values[0]
    assert torch.equal(values["map.0"], values["x"])
    assert values["x"].requires_grad
    assert not values["map.0"].requires_grad


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("clip", ["null", "1"])
@pytest.mark.parametrize("schedule", ["ll", "bp"])
def test_a_step_reads_nothing_where_that_would_stop_the_host(
    schedule: str, clip: str, nonfinite: str
) -> None:
    """The device's way, on CPU tensors; what is skipped is seen afterwards."""
    where = ["device=cpu", f"schedule={schedule}", "gpus=1", f"batch_size={BATCH}"]
    case = [f"optim.clip_norm={clip}", f"optim.nonfinite={nonfinite}", *MODELS["vit"], *DATA, *SGD]
    config, _ = compose_config([*where, *case])
    stage = Stage(prepare(settings.parse(config), "unused").job, 0, torch.device("cpu"))
    stage.reads_at_once = False
    with _Reads() as reads:  # type: ignore[no-untyped-call]
        for step, batch in enumerate(batches(2)):
            stage.begin(training=True, sizes=[BATCH], step=step)
            stage.put(0, batch)
            for chunk in stage.chunks:
                stage.forward(chunk, 0)
                if schedule == "ll":
                    stage.local_backward(chunk, 0, stage.local_loss(chunk, 0))
                    stage.local_step(chunk)
            if schedule == "bp":
                stage.loss(stage.chunks[-1], 0)
                stage.backward(0, {})
                needed = clip != "null" or nonfinite == "skip"
                stage.step(stage.add_norms(None) if needed else None)
            stage.end()
    assert reads.count == 0
    for chunk in stage.chunks:
        assert list(chunk.skipped) == ([0, 1] if nonfinite == "skip" else [])
        assert not any(chunk.skipped.values())


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a tensor's value is read by the host: `item`, `float`, `bool`, `tolist`."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_what_a_unit_draws_on_any_device_depends_on_its_seed_alone() -> None:
    """Another module may have drawn from the CPU's generator before, on a stage that holds both."""
    stage = whole_model("vit", ["local=greedy"])
    other = torch.Generator()  # stands for the generator of a second device
    stage.generators.append(other)
    (batch,) = batches(1)

    def drawn() -> list[Tensor]:
        stage.begin(training=True, sizes=[BATCH])
        stage.put(0, dict(batch))
        stage.forward(stage.chunks[0], 0)
        return [torch.rand(3), torch.rand(3, generator=other)]

    first = drawn()
    torch.rand(7), torch.rand(5, generator=other)
    assert all(map(torch.equal, first, drawn()))
