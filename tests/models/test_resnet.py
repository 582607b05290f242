"""Residual networks, compared with torchvision's."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.resnet import BasicUnit, CifarResNet, FamilyDepth, ResNet, StemKind
from ppll_cli.models.torchvision_weights import from_torchvision
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import Classification

CLASSES = 7
IMAGE = ImageSpec(3, 32, 32)


def reference(depth: int) -> nn.Module:
    builders: dict[int, Callable[..., nn.Module]] = {
        18: torchvision.models.resnet18,
        50: torchvision.models.resnet50,
        152: torchvision.models.resnet152,
    }
    return builders[depth](num_classes=CLASSES)


def same_weights(theirs: nn.Module, depth: FamilyDepth) -> PlainModel:
    ours = PlainModel(ResNet(depth=depth, stem="imagenet").units(IMAGE, Classification(CLASSES)))
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    return ours


def gradients(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    model(image).square().sum().backward()
    found = {key: value.grad for key, value in model.named_parameters()}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_outputs_equal_torchvisions_bit_for_bit(depth: FamilyDepth) -> None:
    theirs = reference(depth)
    image = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        theirs(image)  # so that running statistics differ from 0 and 1
        ours = same_weights(theirs, depth)
        assert torch.equal(ours.eval()(image), theirs.eval()(image))


def test_training_gradients_and_statistics_equal_torchvisions() -> None:
    theirs = reference(18)
    ours = same_weights(theirs, 18)
    image = torch.randn(4, 3, 64, 64)
    expected, seen = gradients(theirs, image), gradients(ours, image)
    buffers = {key: value for key, value in theirs.state_dict().items() if key not in expected}
    expected, seen = from_torchvision(expected | buffers), seen | dict(ours.named_buffers())
    assert seen.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(seen[key], value), key


def test_resnet152_has_torchvisions_keys_and_shapes() -> None:
    with torch.device("meta"):
        theirs = from_torchvision(reference(152).state_dict())
        units = ResNet(depth=152, stem="imagenet").units(IMAGE, Classification(CLASSES))
        ours = PlainModel(units).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_initial_weights_are_distributed_like_torchvisions() -> None:
    theirs = from_torchvision(reference(18).state_dict())
    ours = PlainModel(
        ResNet(depth=18, stem="imagenet").units(IMAGE, Classification(CLASSES))
    ).state_dict()
    for key, value in theirs.items():
        if value.numel() > 3000:  # so both deviations have errors below 10 %
            torch.testing.assert_close(ours[key].std(), value.std(), rtol=0.1, atol=0.0, msg=key)
            torch.testing.assert_close(ours[key].mean(), value.mean(), rtol=0, atol=0.01, msg=key)
        elif ".bn" in key:
            assert torch.equal(ours[key], value), key


def test_units_are_in_order() -> None:
    units = ResNet(depth=18).units(IMAGE, Classification(CLASSES))
    assert [unit.name for unit in units] == [
        "stem",
        *("layer1.0", "layer1.1", "layer2.0", "layer2.1"),
        *("layer3.0", "layer3.1", "layer4.0", "layer4.1"),
        "head",
    ]
    assert (units[0].reads, units[0].writes) == (("image",), ("x",))
    assert all((unit.reads, unit.writes) == (("x",), ("x",)) for unit in units[1:-1])
    assert (units[-1].reads, units[-1].writes) == (("x",), ("prediction",))


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (CifarResNet(depth=32), 466906),  # two 1x1 shortcuts with norms included
        (CifarResNet(depth=110), 1730714),
        (ResNet(depth=18), 11173962),
        (ResNet(depth=50, stem="imagenet"), 23528522),
    ],
)
def test_models_have_the_expected_numbers_of_parameters(
    model: CifarResNet | ResNet, parameters: int
) -> None:
    with torch.device("meta"):
        plain = PlainModel(model.units(IMAGE, Classification(10)))
    assert sum(parameter.numel() for parameter in plain.parameters()) == parameters


@pytest.mark.parametrize(
    ("model", "size", "shapes"),
    [
        (CifarResNet(depth=8), 32, [(16, 32), (16, 32), (32, 16), (64, 8)]),
        (ResNet(depth=18), 32, [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)]),
        (
            ResNet(depth=50, stem="imagenet"),
            64,
            [(64, 16), (256, 16), (512, 8), (1024, 4), (2048, 2)],
        ),
    ],
)
def test_maps_have_the_expected_shapes(
    model: CifarResNet | ResNet, size: int, shapes: list[tuple[int, int]]
) -> None:
    seen: list[tuple[int, int]] = []
    with torch.device("meta"):
        x = torch.empty(2, 1, size, size)
        for unit in model.units(ImageSpec(1, size, size), Classification(CLASSES)):
            x = unit.build()(x)
            if unit.name == "stem" or unit.name.endswith(".0"):
                assert x.shape[2] == x.shape[3]
                seen.append((x.shape[1], x.shape[2]))
    assert seen == shapes
    assert x.shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CifarResNet, {"depth": 33}, "model.depth=33: is not 6n + 2; nearest: 32, 38"),
        (CifarResNet, {"depth": 31}, "model.depth=31: is not 6n + 2; nearest: 26, 32"),
        (CifarResNet, {"depth": 2}, "model.depth=2: is not 6n + 2; nearest: 8, 14"),
        (CifarResNet, {"depth": -7}, "model.depth=-7: is not 6n + 2; nearest: 8, 14"),
        (ResNet, {"depth": 32}, "model.depth=32: must be 18, 34, 50, 101 or 152"),
        (ResNet, {"depth": 18, "stem": "x"}, "model.stem=x: must be 'cifar' or 'imagenet'"),
    ],
)
def test_impossible_options_are_refused(
    kind: Callable[..., object], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        kind(**options)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (
            ResNet(depth=18, stem="imagenet"),
            28,
            "model.stem=imagenet: needs images of at least 32 x 32 pixels, but these have 28 x 40; "
            "use model.stem=cifar, which needs only 8 x 8",
        ),
        (
            ResNet(depth=18),
            7,
            "model=resnet18: needs images of at least 8 x 8 pixels, but these have 7 x 40; "
            "choose a data set with larger images",
        ),
        (
            CifarResNet(depth=32),
            3,
            "model=resnet32: needs images of at least 4 x 4 pixels, but these have 3 x 40; "
            "choose a data set with larger images",
        ),
    ],
)
def test_images_that_are_too_small_are_refused(
    model: CifarResNet | ResNet, size: int, message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        model.units(ImageSpec(3, size, 40), Classification(CLASSES))
    assert str(refusal.value) == message


@pytest.mark.parametrize(("stem", "size"), [("cifar", 8), ("imagenet", 32)])
def test_the_smallest_possible_images_work(stem: StemKind, size: int) -> None:
    image = ImageSpec(1, size, size)
    plain = PlainModel(ResNet(depth=18, stem=stem).units(image, Classification(CLASSES)))
    assert plain(torch.randn(2, 1, size, size)).shape == (2, CLASSES)


def chain(model: CifarResNet | ResNet, size: int) -> list[tuple[Unit, tuple[int, ...]]]:
    """Return each unit with the shape of its input, without the batch dimension."""
    found = []
    with torch.device("meta"):
        x = torch.empty(2, 3, size, size)
        for unit in model.units(ImageSpec(3, size, size), Classification(CLASSES)):
            found.append((unit, tuple(x.shape[1:])))
            x = unit.build()(x)
    return found


RESIDUAL = [
    (CifarResNet(depth=14), 28),
    (CifarResNet(depth=14), 33),
    (ResNet(depth=18), 32),
    (ResNet(depth=50, stem="imagenet"), 64),
]


@pytest.mark.parametrize(("model", "size"), RESIDUAL)
def test_only_residual_units_can_be_adapted(model: CifarResNet | ResNet, size: int) -> None:
    (stem, _), *residual, (head, _) = chain(model, size)
    assert (stem.adapt, head.adapt) == (None, None)
    assert all(unit.adapt is not None for unit, _ in residual)


@pytest.mark.parametrize(("model", "size"), RESIDUAL)
def test_a_unit_adapted_to_its_own_maps_does_not_change(
    model: CifarResNet | ResNet, size: int
) -> None:
    for (unit, given), (_, made) in pairwise(chain(model, size)[1:]):
        assert unit.adapt is not None
        with torch.device("meta"):
            assert str(unit.adapt(given, made)) == str(unit.build()), unit.name


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ((16, 28, 28), (64, 14, 14)),  # the unit's own input is 7 x 7; this one is halved only once
        ((16, 33, 33), (64, 17, 17)),
        ((32, 14, 14), (64, 7, 7)),
        ((64, 7, 7), (64, 7, 7)),
        ((16, 7, 7), (64, 7, 7)),
        ((16, 3, 3), (64, 3, 3)),  # no unit enlarges a map
        ((16, 1, 1), (64, 1, 1)),
        ((5, 8, 10), (64, 4, 5)),
    ],
)
def test_an_adapted_unit_halves_its_maps_at_most_once(
    given: tuple[int, ...], made: tuple[int, ...]
) -> None:
    unit = chain(CifarResNet(depth=14), 28)[-2][0]
    assert unit.adapt is not None
    adapted = unit.adapt(given, (64, 7, 7))
    assert isinstance(adapted, BasicUnit)
    assert adapted(torch.randn(2, *given)).shape == (2, *made)


def test_an_adapted_bottleneck_returns_four_times_its_width() -> None:
    unit = chain(ResNet(depth=50), 32)[-2][0]
    assert unit.adapt is not None
    adapted = unit.adapt((256, 8, 8), (2048, 4, 4))
    assert adapted(torch.randn(2, 256, 8, 8)).shape == (2, 2048, 4, 4)


# From InfoPro's table, for each module but the last: group and index of its last unit.
INFOPRO = {
    (32, "K2"): "2.1",
    (32, "K4"): "1.2 2.1 3.0",
    (32, "K8"): "1.0 1.2 1.4 2.1 2.3 3.0 3.2",
    (110, "K2"): "2.8",
    (110, "K4"): "1.11 2.7 3.3",
    (110, "K8"): "1.4 1.11 2.0 2.7 2.14 3.3 3.10",
    (110, "K16"): "1.1 1.4 1.7 1.10 1.13 1.16 2.1 2.4 2.7 2.11 2.15 3.1 3.5 3.9 3.13",
    (110, "K2_balanced"): "1.14",
    (110, "K3_balanced"): "1.9 2.2",
    (110, "K3_balanced_stl10"): "1.8 2.1",
    (110, "K4_balanced"): "1.6 1.14 2.8",
}


@pytest.mark.parametrize(("depth", "name"), INFOPRO)
def test_infopros_modules_end_where_its_table_says(depth: int, name: str) -> None:
    model = CifarResNet(depth=depth)
    names = [unit.name for unit in model.units(IMAGE, Classification(CLASSES))]
    ends = [names[names.index(start) - 1] for start in model.partitions[name]]
    assert ends == [f"layer{end}" for end in INFOPRO[depth, name].split()]
    assert len(ends) == int(name.split("_")[0][1:]) - 1


@pytest.mark.parametrize(("depth", "units"), [(32, 16), (110, 55)])
@pytest.mark.parametrize("d", range(1, 7))
def test_auglocals_last_module_has_one_unit_more_than_d(depth: int, units: int, d: int) -> None:
    """AugLocal's K counts the stem and the residual units.

    There are K - d modules; all but the last have one unit.
    """
    model = CifarResNet(depth=depth)
    names = [unit.name for unit in model.units(IMAGE, Classification(CLASSES))]
    assert len(names) == units + 1  # with the head
    cuts = model.partitions[f"auglocal_d{d}"]
    assert list(cuts) == names[1 : units - d]
    assert len(cuts) + 1 == units - d


def test_infopros_sixteen_modules_of_resnet32_are_the_stem_and_each_residual_unit() -> None:
    """The last module also has the head."""
    model = CifarResNet(depth=32)
    names = [unit.name for unit in model.units(IMAGE, Classification(CLASSES))]
    assert list(model.partitions["K16"]) == names[1:-1]


@pytest.mark.parametrize(
    ("depth", "balanced", "man"),
    [
        (32, [], ["man_K8", "man_K16"]),
        (
            110,
            ["K2_balanced", "K3_balanced", "K3_balanced_stl10", "K4_balanced"],
            ["man_K32", "man_K55"],
        ),
    ],
)
def test_partitions_have_the_expected_names(
    depth: int, balanced: list[str], man: list[str]
) -> None:
    auglocal = [f"auglocal_d{d}" for d in range(1, 7)]
    names = ["K2", "K4", "K8", "K16", *balanced, *auglocal, *man]
    assert list(CifarResNet(depth=depth).partitions) == names


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_other_depths_have_no_named_partitions(depth: int) -> None:
    assert not CifarResNet(depth=depth).partitions
