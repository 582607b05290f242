"""Renaming of torchvision's weights. The tests of each model compare the outputs."""

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models import VisionTransformer

from ppll_cli.errors import ConfigError
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.torchvision_weights import from_torchvision
from ppll_cli.models.unit import ImageSpec
from ppll_cli.models.vit import ViT
from ppll_cli.tasks.classification import Classification


def their_vit() -> dict[str, Tensor]:
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=12, num_heads=2, hidden_dim=16, mlp_dim=40
    )
    state: dict[str, Tensor] = model.state_dict()
    return state


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_renaming_keeps_all_tensors_of_every_depth(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=5).state_dict()
        ours = from_torchvision(theirs)
    assert ours["stem.conv1.weight"] is theirs["conv1.weight"]
    assert ours["layer4.1.bn2.running_var"] is theirs["layer4.1.bn2.running_var"]
    assert ours["head.fc.bias"] is theirs["fc.bias"]
    assert len(ours) == len(theirs)


def test_weights_of_a_vision_transformer_fit_ours() -> None:
    theirs = their_vit()
    ours = PlainModel(
        ViT(dim=16, depth=12, heads=2, patch=8, mlp_ratio=2.5).units(
            ImageSpec(3, 32, 32), Classification(1000)
        )
    )
    ours.load_state_dict(from_torchvision(theirs))
    key = "encoder.layers.encoder_layer_11.mlp.3.weight"
    assert torch.equal(ours.state_dict()["blocks.11.mlp.3.weight"], theirs[key])


def test_old_names_of_transformer_weights_are_read() -> None:
    theirs = their_vit()
    old = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in theirs.items()
    }
    assert old.keys() != theirs.keys()
    expected, seen = from_torchvision(theirs), from_torchvision(old)
    assert seen.keys() == expected.keys()
    assert all(seen[key] is value for key, value in expected.items())


def test_counters_missing_in_old_files_start_at_zero() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet18().state_dict()
    counter = "num_batches_tracked"
    ours = from_torchvision({k: v for k, v in theirs.items() if not k.endswith(counter)})
    assert len(ours) == len(theirs)
    assert torch.equal(ours["layer1.0.bn1.num_batches_tracked"], torch.tensor(0))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("alexnet", "these weights are of no known model: the first is 'features.0.weight'"),
        ("resnext50_32x4d", "these weights have 'layer1.0.conv1.weight' of shape"),
        ("wide_resnet50_2", "these weights have 'layer1.0.conv1.weight' of shape"),
        ("swin_t", "these weights are of no known model: the first is 'features.0.0.weight'"),
    ],
)
def test_weights_of_other_models_are_refused(name: str, problem: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    with pytest.raises(ConfigError) as refusal:
        from_torchvision(theirs)
    assert str(refusal.value).startswith(f"weights=torchvision: {problem}")
    assert str(refusal.value).endswith(
        "; possible: ResNet-18, 34, 50, 101 or 152, a VisionTransformer, or a RetinaNet"
    )


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="these weights are of no known model: the first is 'nothing'"
    ):
        from_torchvision({})


def test_another_number_of_residual_units_is_refused() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet18().state_dict()
    fewer = {key: value for key, value in theirs.items() if not key.startswith("layer2.1.")}
    with pytest.raises(ConfigError, match=r"these weights have \(2, 1, 2, 2\) residual units"):
        from_torchvision(fewer)


def test_missing_and_unknown_tensors_are_refused() -> None:
    theirs = their_vit()
    with pytest.raises(ConfigError, match="these weights have an unknown tensor 'extra'"):
        from_torchvision(theirs | {"extra": torch.zeros(1)})
    del theirs["class_token"]
    with pytest.raises(ConfigError, match=r"these weights have no 'embed\.class_token'"):
        from_torchvision(theirs)
