"""Renaming of torchvision's weights. The tests of each model compare the outputs."""

from collections.abc import Sequence

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models import VisionTransformer

from ppll_cli.models.plain import PlainModel
from ppll_cli.models.resnet import ResNet
from ppll_cli.models.torchvision_weights import from_torchvision
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.models.vit import ViT
from ppll_cli.tasks.classification import Classification


def their_vit() -> dict[str, Tensor]:
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=12, num_heads=2, hidden_dim=16, mlp_dim=40
    )
    state: dict[str, Tensor] = model.state_dict()
    return state


def resnet18() -> Sequence[Unit]:
    return ResNet(depth=18, stem="imagenet").units(ImageSpec(3, 32, 32), Classification(5))


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
    theirs = torchvision.models.resnet18(num_classes=5).state_dict()
    counter = "num_batches_tracked"
    ours = PlainModel(resnet18())
    ours.load_state_dict(
        from_torchvision({k: v for k, v in theirs.items() if not k.endswith(counter)})
    )
    assert torch.equal(ours.get_buffer("layer1.0.bn1.num_batches_tracked"), torch.tensor(0))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("resnet34", "Unexpected key"),
        ("resnext50_32x4d", "size mismatch for layer1.0.conv1.weight"),
    ],
)
def test_weights_of_other_models_are_refused(name: str, problem: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=5).state_dict()
        model = PlainModel(resnet18())
    with pytest.raises(RuntimeError, match=problem):
        model.load_state_dict(from_torchvision(theirs))
