"""Simple Local Modules and the feature bank."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.bank import FusedPictureHead
from ppll_cli.local.copies import CopiedNetwork
from ppll_cli.local.fba import FBA
from ppll_cli.local.method import Site, module_exports
from ppll_cli.models.edsr import EDSR, Tail
from ppll_cli.models.resnet import BasicUnit, CifarResNet, ResNet
from ppll_cli.models.resnet import Head as ResNetHead
from ppll_cli.models.unit import ImageSpec, Model, Unit
from ppll_cli.models.vit import Block, Embed, ViT
from ppll_cli.models.vit import Head as ViTHead
from ppll_cli.tasks.classification import Classification, Pool
from ppll_cli.tasks.super_resolution import SuperResolution
from tests.local.conftest import site_over
from tests.other_task import OtherTask

TASK = Classification(5)
OFF = FeatureBank(enabled=False)
RESNET = CifarResNet(depth=14)  # stem | layer1.0 layer1.1 | layer2.0 layer2.1 | layer3.0 layer3.1
VIT = ViT(dim=8, depth=4, heads=2, patch=4, mlp_ratio=2.0)


def sites(model: Model, size: int = 12) -> list[Site]:
    """Return sites at which each unit is a module. The head belongs to the last module."""
    image = ImageSpec(1, size, size)
    units = model.units(image, TASK)
    site = site_over(units, image, TASK, range(1, len(units) - 1))
    return [site.at(module) for module in range(len(site.modules))]


def bank(**options: object) -> FeatureBank:
    return FeatureBank.model_validate({"enabled": True, **options})


def copied(method: FBA, site: Site) -> list[nn.Module]:
    """Return the copied units of which the Simple Local Module consists."""
    network = method.criterion(site).head
    assert isinstance(network, CopiedNetwork)
    return list(network.units.children())


def names_read(method: FBA, site: Site) -> list[str]:
    return [name for name in method.criterion(site).reads if name not in ("x", "label")]


def exported(method: FBA, site: Site) -> list[str]:
    return [unit.name for unit in module_exports(method, site)]


def widths(units: list[nn.Module]) -> list[int]:
    assert all(isinstance(unit, BasicUnit) for unit in units)
    return [unit.conv2.out_channels for unit in units]  # type: ignore[union-attr, misc]


def test_the_local_module_has_the_first_unit_of_each_later_resolution_stage() -> None:
    at = sites(RESNET)
    found = [widths(copied(FBA(bank=OFF), site)) for site in at[:-1]]
    assert found == [[32, 64], [32, 64], [32, 64], [64], [64], []]


def test_deeper_local_modules() -> None:
    """The local module has up to `depth` units of each later stage."""
    method = FBA(bank=OFF, depth=3)
    assert widths(copied(method, sites(RESNET)[0])) == [32, 32, 64, 64]
    assert widths(copied(method, sites(RESNET)[3])) == [64, 64]


def test_a_shape_that_comes_back_is_another_resolution_stage() -> None:
    shapes = [(8, 4, 4), (8, 4, 4), (16, 2, 2), (16, 2, 2), (8, 4, 4), (8, 4, 4), (16, 2, 2)]
    units = [Unit(str(number), nn.Identity) for number in range(8)]
    features = [ValueSpec(shape, torch.float32) for shape in (*shapes, (5,))]
    site = Site(0, (range(1), range(1, 8)), units, features, ImageSpec(1, 4, 4), TASK)
    assert FBA(bank=OFF, depth=3)._copied(site) == [2, 3, 4, 5, 6]


def test_the_stem_of_a_bottleneck_net_is_a_resolution_stage_of_its_own() -> None:
    """The stem returns 64 channels, and the first group four times as many."""
    site = sites(ResNet(depth=50), size=16)[0]
    assert len(copied(FBA(bank=OFF), site)) == 4


@pytest.mark.parametrize(("module", "depth", "count"), [(0, 1, 1), (0, 3, 3), (2, 3, 2), (3, 2, 1)])
def test_a_vit_has_one_resolution_stage(module: int, depth: int, count: int) -> None:
    units = copied(FBA(bank=OFF, depth=depth), sites(VIT)[module])
    assert len(units) == count
    assert all(isinstance(unit, Block) for unit in units)
    assert not any(isinstance(unit, Embed) for unit in units)


@pytest.mark.parametrize(("model", "head"), [(RESNET, ResNetHead), (VIT, ViTHead)])
def test_the_head_is_a_copy_of_the_models(model: Model, head: type) -> None:
    for site in sites(model)[:-1]:
        network = FBA(bank=OFF).criterion(site).head
        assert isinstance(network, CopiedNetwork)
        assert isinstance(network.head, head)


@pytest.mark.parametrize(
    ("options", "read", "made"),
    [
        ({}, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]], [0, 1, 2, 3, 4]),
        ({"features": 1}, [[], [0], [1], [2], [3], [4]], [0, 1, 2, 3, 4]),
        ({"features": 2}, [[], [0], [0, 1], [1, 2], [2, 3], [3, 4]], [0, 1, 2, 3, 4]),
        ({"features": "stage_ends"}, [[], [], [], [2], [2], [2, 4]], [2, 4]),
        ({"fusion": "none"}, [[]] * 6, []),
        ({"enabled": False}, [[]] * 6, []),
    ],
)
def test_the_bank_holds_the_features_that_the_settings_choose(
    options: dict[str, object], read: list[list[int]], made: list[int]
) -> None:
    """There are three shapes: that of the stem and layer1, that of layer2, and that of layer3."""
    at = sites(RESNET)
    method = FBA(bank=bank(**options))
    assert [names_read(method, site) for site in at[:-1]] == [
        [f"bank.{number}" for number in numbers] for numbers in read
    ]
    assert [exported(method, site) for site in at] == [
        [f"bank.{site.module}"] if site.module in made else [] for site in at
    ]


def test_nothing_is_banked_that_no_auxiliary_network_reads() -> None:
    """No later auxiliary network reads the feature of the last one.

    The model's head reads no bank.
    """
    at = sites(RESNET)
    assert exported(FBA(bank=bank()), at[-2]) == []
    two = Site(0, (range(3), range(3, 8)), at[0].units, at[0].features, at[0].input_spec, TASK)
    assert exported(FBA(bank=bank()), two) == []


@pytest.mark.parametrize("model", [RESNET, VIT], ids=["resnet", "vit"])
def test_banked_features_are_pooled(model: Model) -> None:
    for site in sites(model)[:-2]:
        (unit,) = module_exports(FBA(bank=bank()), site)
        assert unit.reads == (site.feature,)
        x = torch.randn(3, *site.spec.shape)
        assert torch.equal(unit.build()(x), Pool(len(site.spec.shape))(x))


OPTIONS: list[dict[str, object]] = [
    {},
    {"fusion": "add"},
    {"shared_head": False},
    {"features": 1},
    {"normalize": True},
    {"trains": "probe"},
    {"join": "input"},
    {"join": "input", "fusion": "add"},
]
"""Options, of which every other one is always tried on a ViT. The rest is tried on a ResNet."""


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param(
            *(model, options),
            id=f"{name}-{options}",
            marks=[pytest.mark.slow] * ((name == "vit") != (number % 2 == 0)),
        )
        for name, model in (("resnet", RESNET), ("vit", VIT))
        for number, options in enumerate(OPTIONS)
    ],
)
def test_every_parameter_has_a_gradient(model: Model, options: dict[str, object]) -> None:
    at = sites(model)
    for site in at[:-1]:
        criterion = FBA(bank=bank(**options)).criterion(site)
        for parameter in criterion.parameters():  # at first, the head of a ViT is zero
            nn.init.normal_(parameter, std=0.1)
        values: dict[str, Tensor] = {"label": torch.arange(6) % 5}
        for name in criterion.features:
            values[name] = torch.rand(6, *site.spec.shape, requires_grad=name == "x")
        for name in names_read(FBA(bank=bank(**options)), site):
            earlier = at[int(name.removeprefix("bank."))]
            (unit,) = module_exports(FBA(bank=bank(**options)), earlier)
            values[name] = unit.build()(torch.rand(6, *earlier.spec.shape))
        loss, prediction = criterion(values)
        assert prediction.shape == (6, 5)
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in criterion.parameters())
        assert values["x"].grad is not None


@pytest.mark.parametrize("model", [RESNET, VIT], ids=["resnet", "vit"])
def test_features_that_are_joined_at_the_input_are_banked_unpooled(model: Model) -> None:
    for site in sites(model)[:-2]:
        (unit,) = module_exports(FBA(bank=bank(join="input")), site)
        x = torch.randn(3, *site.spec.shape)
        assert torch.equal(unit.build()(x), x)


def test_the_weights_of_todays_bank_keep_their_names() -> None:
    """Otherwise, checkpoints of older versions could not be restored."""
    names = {
        n.split(".units.")[0] for n in FBA(bank=bank()).criterion(sites(RESNET)[2]).state_dict()
    }
    layers = ["head.fc", "projections.0", "projections.1", "mix"]
    fused = {f"head.head.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert names == {"head", *fused}


@pytest.mark.parametrize("option", [{"join": "input"}, {"trains": "probe"}, {"normalize": True}])
def test_banks_of_maps_refuse_options_of_pooled_vectors(option: dict[str, object]) -> None:
    ((key, value),) = option.items()
    message = rf"^fba\.{key}={str(value).lower()}: does not apply to detection and super-resolution"
    with pytest.raises(ConfigError, match=message):
        FBA(bank=bank(**OPEN, **option)).criterion(picture_sites()[1])


def test_a_bank_of_zeros_leaves_a_picture_without_its_long_skip() -> None:
    site = picture_sites()[0]
    criterion = FBA(bank=bank(**OPEN, measure_zeroed=True)).criterion(site)
    values = {"first": torch.randn(2, 4, 8, 8), "target": torch.rand(2, 3, 16, 16)}
    network = criterion.head
    assert isinstance(network, CopiedNetwork)
    head = network.head
    assert isinstance(head, FusedPictureHead)
    expected = head.head.upsampler(head.head.mapped(network.units(values["first"])))
    torch.testing.assert_close(criterion.predict_further(values), {"bank_zeroed": expected})


class _PlainHead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))[:, :5]


def test_a_head_of_another_class_is_refused() -> None:
    at = sites(RESNET)
    units = [*at[0].units[:-1], Unit("head", _PlainHead, writes=("prediction",))]
    site = Site(1, at[0].modules, units, at[0].features, at[0].input_spec, TASK)
    FBA(bank=OFF).criterion(site)
    with pytest.raises(ConfigError, match=r"^fba=on: the model's head, _PlainHead, is not a Cla"):
        FBA(bank=bank()).criterion(site)


def test_another_task_has_a_bank_if_the_head_is_a_classifier_head() -> None:
    at = sites(RESNET)
    other = replace(at[1], task=OtherTask())
    (unit,) = module_exports(FBA(bank=bank()), other)
    assert unit.build()(torch.randn(2, 16, 12, 12)).shape == (2, 16)
    criterion = FBA(bank=bank()).criterion(other)
    assert criterion.reads == ("x", "bank.0", "target")
    criterion.head(torch.randn(2, 16, 12, 12), torch.randn(2, 16))
    plain = replace(other, units=[*other.units[:-1], Unit("head", _PlainHead)])
    with pytest.raises(ConfigError, match=r"^fba=on: the model's head, _PlainHead, is not a Cla"):
        FBA(bank=bank()).criterion(plain)
    FBA(bank=OFF).criterion(plain)


def test_depth_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"^local\.depth=0: must be greater than or equal to 1"):
        FBA(bank=OFF, depth=0)


PICTURES = SuperResolution(scale=2, patch=8, mean=(0.4, 0.5, 0.6), overlap=40)
EDSR_NET = EDSR(depth=3, width=4)  # first, body.0 body.1 body.2, tail


def picture_sites() -> list[Site]:
    """Return sites at which each unit is a module."""
    image = ImageSpec(3, 8, 8)
    site = site_over(EDSR_NET.units(image, PICTURES), image, PICTURES)
    return [site.at(module) for module in range(len(site.modules))]


OPEN = {"features": None, "fusion": None}


def test_the_long_skip_of_pictures_is_the_nets_first_features() -> None:
    """Each module has Upsampler(tail(SLM_j(x_j)) + stop-gradient(x_0)). Nothing is banked."""
    method = FBA(bank=bank(**OPEN))
    at = picture_sites()
    for site in at[:-1]:
        torch.manual_seed(0)
        criterion = method.criterion(site)
        assert criterion.features == (site.feature, "first")
        assert exported(method, site) == []
        torch.manual_seed(0)
        # the weights are the same, because a skip has no weights
        alone = FBA(bank=OFF).criterion(site)
        alone.load_state_dict(
            {n.replace("head.head.head", "head.head"): w for n, w in criterion.state_dict().items()}
        )
        x, first = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        if site.feature == "first":
            first = x
        x.requires_grad_()
        values = {"first": first, site.feature: x, "target": torch.rand(2, 3, 16, 16)}
        loss, prediction = criterion(values)
        network = alone.head
        assert isinstance(network, CopiedNetwork)
        tail = network.head
        assert isinstance(tail, Tail)
        mapped = tail.mapped(network.units(x))
        expected = tail.upsampler(mapped + first.detach())
        torch.testing.assert_close(prediction, expected)
        assert not torch.allclose(prediction, network(x))
        (gradient,) = torch.autograd.grad(loss, x)
        mean = (expected - values["target"]).abs().mean()
        (wanted,) = torch.autograd.grad(mean, x)  # no gradient goes through the skip
        torch.testing.assert_close(gradient, wanted)


def test_no_gradient_reaches_first_features_through_the_skip() -> None:
    site = picture_sites()[1]
    values = {name: torch.randn(1, 4, 8, 8, requires_grad=True) for name in ("first", "x")}
    loss, _ = FBA(bank=bank(**OPEN)).criterion(site)({**values, "target": torch.rand(1, 3, 16, 16)})
    loss.backward()
    assert values["first"].grad is None
    assert values["x"].grad is not None


def test_features_every_banks_the_maps_of_all_earlier_modules() -> None:
    site = picture_sites()[3]
    method = FBA(bank=bank(features="every", fusion=None))
    assert method.criterion(site).features == ("x", "bank.0", "bank.1", "bank.2")
    assert FBA(bank=bank()).criterion(site).features == ("x", "bank.0", "bank.1", "bank.2")
    assert FBA(bank=bank(features=None, fusion="none")).criterion(site).features == ("x",)
    assert FBA(bank=OFF).criterion(site).features == ("x",)


def test_first_features_are_for_heads_with_a_long_skip() -> None:
    method = FBA(bank=bank(features="first"))
    message = "^fba.features=first: stands for the long skip of super-resolution, "
    message += "but this is another task"
    with pytest.raises(ConfigError, match=message):
        method.criterion(sites(RESNET)[1])
    at = picture_sites()[2]
    tail = replace(at.units[-1], reads=("x",))
    plain = replace(at, units=[*at.units[:-1], tail])
    with pytest.raises(ConfigError, match=r"the model's head reads no long skip; use fba\.feat"):
        method.criterion(plain)
    assert names_read(FBA(bank=bank(**OPEN)), plain)[:2] == ["bank.0", "bank.1"]
