"""A model in one piece, and properties of the units of every model."""

import inspect
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.resnet import CifarResNet, ResNet
from ppll_cli.models.unit import ImageSpec, Model, Unit, build_unit
from ppll_cli.models.vit import ViT
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.detection import Detection
from ppll_cli.tasks.super_resolution import SuperResolution
from ppll_cli.tasks.task import Task
from tests.other_task import OtherTask

CONF = Path(__file__).parents[2] / "conf"
CONFIGS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
LARGE = {"vit_base", "resnet152"}
"""Large models, which run on the meta device to keep the tests fast."""

IMAGE = ImageSpec(3, 32, 32)
ENLARGING = SuperResolution(scale=2, patch=32, mean=(0.0, 0.0, 0.0), overlap=64)
FINDING = Detection(("a", "b"), boxes=1, height=32, width=32, anchor=16)
TASK = Classification(10)
OTHERS: Mapping[str, tuple[Task, tuple[int, ...]]] = {
    "edsr": (ENLARGING, (2, 3, 64, 64)),
    "retinanet": (FINDING, (2, 9 * (4 * 4 + 2 * 2 + 3), 9 + 2)),
}
"""For models that are not classifiers: a task, and the shape of the prediction for two images."""

MODELS: Mapping[str, Model] = {
    "vit-cls": ViT(dim=16, depth=2, heads=2, patch=8, dropout=0.1, attention_dropout=0.1),
    "vit-mean": ViT(dim=16, depth=2, heads=2, patch=8, pooling="mean"),
    "cifar-resnet": CifarResNet(depth=14),
    "resnet18-cifar": ResNet(depth=18),
    "resnet50-imagenet": ResNet(depth=50, stem="imagenet"),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
each_slow_if_large = pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, id=name, marks=[pytest.mark.slow] * (name == "resnet50-imagenet"))
        for name, model in MODELS.items()
    ],
)


@each_slow_if_large
def test_names_of_parameters_begin_with_their_unit(model: Model) -> None:
    units = model.units(IMAGE, TASK)
    expected = {
        f"{unit.name}.{key}": value
        for unit in units
        for key, value in build_unit(unit, 3).state_dict().items()
    }
    seen = PlainModel(units, seed=3).state_dict()
    assert list(seen) == list(expected)
    for key, value in expected.items():
        assert torch.equal(seen[key], value), key


@each_model
def test_names_of_units_are_unique(model: Model) -> None:
    names = [unit.name for unit in model.units(IMAGE, TASK)]
    assert len(set(names)) == len(names)


@each_model
def test_initial_weights_depend_only_on_seed_and_name(model: Model) -> None:
    unit = model.units(IMAGE, TASK)[2]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_unit(unit, 0).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again = build_unit(unit, 0).state_dict()
    renamed = build_unit(Unit("other", unit.build), 0).state_dict()
    reseeded = build_unit(unit, 1).state_dict()
    random = [key for key, value in first.items() if value.is_floating_point() and value.dim() > 1]
    assert random
    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert not any(torch.equal(renamed[key], first[key]) for key in random)
    assert not any(torch.equal(reseeded[key], first[key]) for key in random)


def test_initial_weights_of_a_unit_are_the_same_in_a_deeper_model() -> None:
    shallow = PlainModel(ViT(dim=16, depth=1, heads=2, patch=8).units(IMAGE, TASK)).state_dict()
    deep = PlainModel(ViT(dim=16, depth=3, heads=2, patch=8).units(IMAGE, TASK)).state_dict()
    assert all(torch.equal(deep[key], value) for key, value in shallow.items())


@each_model
def test_units_can_be_sent_to_another_process(model: Model) -> None:
    for unit in model.units(IMAGE, TASK):
        copy = pickle.loads(pickle.dumps(unit))
        with torch.device("meta"):
            assert list(copy.build().state_dict()) == list(unit.build().state_dict())


@pytest.mark.parametrize("training", [True, False])
@each_slow_if_large
def test_units_never_change_their_inputs(model: Model, training: bool) -> None:
    x = torch.randn(2, 3, 32, 32)
    for unit in model.units(IMAGE, TASK):
        module = build_unit(unit, 0).train(training)
        given, untouched = x.detach().requires_grad_(), x.detach().clone()
        version = given._version
        x = module(given)
        x.sum().backward()  # fails if a tensor that autograd needs was overwritten
        assert given._version == version, unit.name
        assert torch.equal(given, untouched), unit.name


@each_model
def test_every_model_runs_on_the_meta_device(model: Model) -> None:
    with torch.device("meta"):
        plain = PlainModel(model.units(IMAGE, TASK))
        prediction = plain(torch.empty(2, 3, 32, 32))
        prediction.sum().backward()
    assert prediction.shape == (2, 10)
    assert prediction.is_meta
    assert all(parameter.grad is not None for parameter in plain.parameters())


@each_model
def test_another_task_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"^model=(vit|resnet\d+): is for classification; "):
        model.units(IMAGE, OtherTask())


@each_model
def test_data_without_images_are_refused(model: Model) -> None:
    with pytest.raises(
        ConfigError, match=r"^model=(vit|resnet\d+): reads images, but the data set"
    ):
        model.units(SimpleNamespace(specs={"tokens": ValueSpec((5,), torch.int64)}), TASK)


class _Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


class _Sum(nn.Module):
    def forward(self, *values: Tensor) -> Tensor:
        return torch.stack(values).sum(dim=0)


def test_named_tensors_reach_the_units_that_read_them() -> None:
    units = [
        Unit("split", _Split, reads=("image",), writes=("x", "skip")),
        Unit("a.b.first", _Sum, reads=("x", "image")),
        Unit("a.b.second", _Sum, reads=("x", "skip", "image"), writes=("prediction",)),
    ]
    image = torch.tensor([5.0])
    # x = 6 and skip = 10, then x = 6 + 5; the prediction is 11 + 10 + 5
    assert PlainModel(units)(image).item() == 26.0


def test_a_missing_input_is_named() -> None:
    """A model of two inputs that was called with one tensor raised a KeyError."""
    units = [Unit("split", _Sum, reads=("area", "kind"))]
    with pytest.raises(TypeError, match="'split' reads area, kind, but there is no 'kind': call"):
        PlainModel(units)(torch.tensor([5.0]))


def test_several_predictions_are_returned_as_a_tuple() -> None:
    units = [Unit("split", _Split, reads=("image",), writes=("boxes", "scores"))]
    boxes, scores = PlainModel(units)(torch.tensor([5.0]))
    assert (boxes.item(), scores.item()) == (6.0, 10.0)


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("a", "a.b"), ("a.b", "a")])
def test_clashing_names_of_units_are_refused(first: str, second: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^model={second}: clashes with the unit name '{first}'; "
    ):
        PlainModel([Unit(first, _Sum), Unit(second, _Sum)])


@pytest.mark.parametrize("name", ["train", "a.forward", "a..b", ""])
def test_names_that_a_module_has_already_are_refused(name: str) -> None:
    """A run with such names trained, but its model could not be loaded afterwards."""
    with pytest.raises(ConfigError, match=f"^model={name}: cannot be a unit name: "):
        PlainModel([Unit(name, _Sum)])


def compose(name: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(overrides=[f"+model={name}"]).model
    assert isinstance(config, DictConfig)
    return config


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in {"resnet50", "resnet110", *LARGE}))
        for name in CONFIGS
    ],
)
def test_every_config_builds_and_runs(name: str) -> None:
    model: Model = instantiate(compose(name))
    task, shape = OTHERS.get(name, (TASK, (2, 10)))
    with torch.device("meta" if name in LARGE else "cpu"), torch.no_grad():
        plain = PlainModel(model.units(IMAGE, task))
        prediction = plain(torch.zeros(2, 3, 32, 32))
    assert isinstance(prediction, Tensor)
    assert prediction.shape == shape


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_lists_all_options_of_its_model(name: str) -> None:
    config = compose(name)
    options = inspect.signature(get_class(config._target_)).parameters
    assert set(config) == {"_target_", *options}


def test_option_resnet_is_resnet32() -> None:
    assert compose("resnet") == compose("resnet32")
