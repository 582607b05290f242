"""Residual networks against torchvision's."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.resnet import CifarResNet, ResNet, StemKind
from ppll_cli.models.torchvision_weights import from_torchvision
from ppll_cli.models.unit import ImageSpec
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


def same_weights(theirs: nn.Module, depth: int) -> PlainModel:
    ours = PlainModel(ResNet(depth=depth, stem="imagenet").units(IMAGE, Classification(CLASSES)))
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    return ours


def gradients(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    model(image).square().sum().backward()
    found = {key: value.grad for key, value in model.named_parameters()}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize("depth", [18, 50])
def test_outputs_equal_torchvisions_bit_for_bit(depth: int) -> None:
    theirs = reference(depth)
    image = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        theirs(image)  # moves the norms' running statistics away from 0 and 1
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


def test_weights_start_like_torchvisions() -> None:
    theirs = from_torchvision(reference(18).state_dict())
    ours = PlainModel(
        ResNet(depth=18, stem="imagenet").units(IMAGE, Classification(CLASSES))
    ).state_dict()
    for key, value in theirs.items():
        if value.numel() > 3000:  # so both are within 10 % of the distribution's
            torch.testing.assert_close(ours[key].std(), value.std(), rtol=0.1, atol=0.0, msg=key)
            torch.testing.assert_close(ours[key].mean(), value.mean(), rtol=0, atol=0.01, msg=key)
        elif ".bn" in key:
            assert torch.equal(ours[key], value), key


def test_units_in_order() -> None:
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
        (CifarResNet(depth=32), 466906),  # 464,154 with padding, and two 1x1 convolutions and norms
        (CifarResNet(depth=110), 1730714),
        (ResNet(depth=18), 11173962),
        (ResNet(depth=50, stem="imagenet"), 23528522),
    ],
)
def test_number_of_parameters(model: CifarResNet | ResNet, parameters: int) -> None:
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
def test_shapes_of_the_maps(
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
    ("depth", "nearest"), [(33, "32, 38"), (31, "26, 32"), (2, "8, 14"), (-7, "8, 14")]
)
def test_cifar_depths_that_do_not_exist(depth: int, nearest: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        CifarResNet(depth=depth)
    assert str(refusal.value) == f"model.depth={depth}: is not 6n + 2; nearest: {nearest}"


def test_depths_that_do_not_exist() -> None:
    with pytest.raises(ConfigError) as refusal:
        ResNet(depth=32)
    assert str(refusal.value) == (
        "model.depth=32: no ResNet has this depth; possible: 18, 34, 50, 101, 152"
    )


def test_unknown_stem() -> None:
    with pytest.raises(ConfigError) as refusal:
        ResNet(depth=18, stem="large")  # type: ignore[arg-type]  # that is the point
    assert str(refusal.value) == "model.stem=large: is unknown; possible: cifar, imagenet"


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (
            ResNet(depth=18, stem="imagenet"),
            28,
            "model.stem=imagenet: needs images of at least 32 x 32 pixels, these have 28 x 40; "
            "model.stem=cifar needs 8 x 8",
        ),
        (
            ResNet(depth=18),
            7,
            "model=resnet18: needs images of at least 8 x 8 pixels, these have 7 x 40; "
            "choose a data set with larger images",
        ),
        (
            CifarResNet(depth=32),
            3,
            "model=resnet32: needs images of at least 4 x 4 pixels, these have 3 x 40; "
            "choose a data set with larger images",
        ),
    ],
)
def test_images_that_are_too_small(model: CifarResNet | ResNet, size: int, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        model.units(ImageSpec(3, size, 40), Classification(CLASSES))
    assert str(refusal.value) == message


@pytest.mark.parametrize(("stem", "size"), [("cifar", 8), ("imagenet", 32)])
def test_the_smallest_images(stem: StemKind, size: int) -> None:
    image = ImageSpec(1, size, size)
    plain = PlainModel(ResNet(depth=18, stem=stem).units(image, Classification(CLASSES)))
    assert plain(torch.randn(2, 1, size, size)).shape == (2, CLASSES)
