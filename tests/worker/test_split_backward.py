"""A backward in two halves has the gradients of the whole one, bit for bit, for all that ships."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppll_cli.config import settings
from ppll_cli.job.course import Batch
from ppll_cli.job.job import Job
from ppll_cli.pipeline.instructions import Backward, BackwardInput, BackwardWeight
from ppll_cli.pipeline.passes import whole_backwards
from ppll_cli.predict.timing import batch_like
from ppll_cli.prepare.preparation import prepare
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.state import tensors_of
from tests.conftest import assert_same, compose_config, own_model
from tests.data.picture_files import write_photos
from tests.data.scene_files import write_fashion

DATA = ["data=synthetic", "data.size=16", "data.train_samples=8", "data.test_samples=4"]
MODELS = {
    "vit": ["model.dim=16", "model.depth=2", "model.heads=2", "model.dropout=0.1"],
    "vit mean": ["model.dim=16", "model.depth=1", "model.heads=2", "model.pooling=mean"],
    "resnet32": ["model=resnet32", "model.depth=14"],
    "resnet18": ["model=resnet18"],
    "resnet50": ["model=resnet50"],
    "retinanet": ["model=retinanet", "model.width=8"],
    "retinanet group": ["model=retinanet", "model.width=64", "model.norm=group"],
    "edsr": ["model=edsr", "model.depth=2", "model.width=4"],
    "skipping": own_model("Skipping"),
    "idle": own_model("Idle"),
}
CPU = torch.device("cpu")
SIZES = [2, 1]
"""Samples of each micro-batch."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Overrides: the data of each model that has some of its own."""
    root = tmp_path_factory.mktemp("files")
    scenes = ["data=fashion_scenes", "data.pictures=8", "data.test_pictures=3", "data.side=64"]
    scenes += [f"data.root={write_fashion(root / 'fashion')}", "data.short_side=64"]
    photos = write_photos(root / "photos", width=72, height=64)
    pictures = ["data=photos", f"data.folders=[{photos}]", f"data.cache={root / 'cache'}"]
    pictures += ["data.patch=8", "data.patches_per_epoch=10", "data.tile=64", "data.overlap=13"]
    return {"retinanet": [*scenes, "data.long_side=64"], "edsr": pictures}


def job_of(folder: Path, files: dict[str, list[str]], model: str, *more: str) -> Job:
    """A job in which each unit is a chunk."""
    data = files.get(model.split()[0], DATA)
    usual = ["device=cpu", "batch_size=4", *data, *MODELS[model], *more]

    def made(*where: str) -> Job:
        config, _ = compose_config([*usual, *where])
        return prepare(settings.parse(config), str(folder)).job

    units = len(made("schedule=bp").features)
    return made("schedule=gpipe", f"gpus={units}", "schedule.microbatches=2")


def trained(job: Job, number: int, split: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A chunk's state after two steps of two micro-batches, and the gradients of its inputs.

    With `split`, both halves to the inputs come before those to the parameters.
    """
    chunk = HeldChunk(job, number, job.site(job.units()), CPU)
    into, out = job.routes.into[number], job.routes.out_of(number)
    torch.manual_seed(7)
    sent: list[Tensor] = []
    count = range(len(SIZES))
    for step in range(2):
        chunk.begin(Batch(SIZES, True, step, sum(SIZES)))
        for m in count:
            specs = job.specs[number]
            chunk.take_inputs(m, {n: batch_like(specs[n], SIZES[m], CPU) for n in specs})
            chunk.forward(m)
            outputs = chunk._values[m]
            names = out.gradients or chunk.units[-1][0].writes
            wanted = [name for name in names if outputs[name].requires_grad]
            gradients = {n: torch.randn(outputs[n].shape).to(outputs[n].dtype) for n in wanted}
            chunk.take_gradients(m, gradients)
        if split and into.gradients:
            for m in count:
                chunk.backward_input(m)
                sent += chunk.take_input_gradients(m).values()
            for m in count:
                chunk.backward_weight(m)
        else:
            for m in count:
                chunk.backward(m)
                if into.gradients:
                    sent += chunk.take_input_gradients(m).values()
        sent += [p.grad.clone() for p in chunk.parameters if p.grad is not None]
        chunk.step(None)
        chunk.end()
    return tensors_of([chunk]), sent


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("model", MODELS)
def test_halves_have_the_gradients_of_the_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, list[str]],
    model: str,
    optim: str,
    precision: str,
) -> None:
    """Of every unit's inputs and parameters, over micro-batches of two sizes, and after steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = job_of(tmp_path, files, model, f"optim={optim}", f"precision={precision}")
    split = 0
    for number in range(1, len(job.layout.chunks)):  # what enters the first takes no gradient
        expected, sent = trained(job, number, split=False)
        found, halves = trained(job, number, split=True)
        assert_same(found, expected)
        inputs = len(job.routes.into[number].gradients)
        split += inputs > 0
        assert len(sent) == len(halves) >= 2 * len(SIZES) * inputs
        assert all(map(torch.equal, sent, halves))
    assert split >= len(job.layout.chunks) - 2


def test_the_cases_have_names_that_pass_through_and_units_without_parameters(
    tmp_path: Path, files: dict[str, list[str]]
) -> None:
    skipping = job_of(tmp_path, files, "skipping").routes
    edsr = job_of(tmp_path, files, "edsr").routes
    for routes, name in ((skipping, "skip"), (edsr, "first")):
        assert any(name in routes.passing(n) & {*routes.into[n].gradients} for n in range(1, 4))
    idle = job_of(tmp_path, files, "idle")
    last = HeldChunk(idle, 2, idle.site(idle.units()), CPU)
    assert not last.unit_parameters[0]
    assert idle.routes.into[2].gradients == ("x",)


METHODS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/local").glob("*.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_under_local_learning_nothing_is_split(method: str) -> None:
    """No gradient enters a module, so its backward, and that of its loss, is a whole one."""
    case = ["device=cpu", "schedule=ppll", "gpus=2", "local.modules=4", *DATA, *MODELS["vit"]]
    config, _ = compose_config([*case, f"local={method}", "batch_size=4"])
    job = prepare(settings.parse(config), "unused").job
    place = job.place(0, 1)
    halves = [kind(chunk, 0) for chunk in place.chunks for kind in (BackwardInput, BackwardWeight)]
    assert whole_backwards(place, halves) == [Backward(chunk, 0) for chunk in place.chunks]
