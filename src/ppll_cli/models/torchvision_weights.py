"""Renames the weights of torchvision's models to this program's names."""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.resnet import FAMILY, BottleneckUnit, FamilyDepth, ResNet
from ppll_cli.models.retinanet import Norm, RetinaNet
from ppll_cli.models.torchvision_names import COUNTER, our_name
from ppll_cli.models.unit import ImageSpec, Model
from ppll_cli.models.vit import ViT
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.detection import Detection
from ppll_cli.tasks.pyramid import ANCHORS
from ppll_cli.tasks.task import Task

LOGITS = "head.head.classification_head.cls_logits.weight"
NORM = "head.head.classification_head.conv.0.1.weight"


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a torchvision model to the names of the corresponding model here.

    The result fits `ResNet` with `stem="imagenet"`, `ViT` with `pooling="cls"`, or `RetinaNet`. The
    result shares its tensors with `state_dict`. The number of attention heads cannot be found from
    the weights, so give `ViT` the number of the original model.

    Args:
        state_dict: Weights of a torchvision ResNet-18, 34, 50, 101 or 152, of a VisionTransformer,
            or of a RetinaNet over such a ResNet. The number of classes may differ from
            torchvision's. RetinaNet's pyramid must be made from C3 to C5, and P6 from P5.

    Returns:
        Weights for `PlainModel.load_state_dict`.

    Raises:
        ConfigError: The weights belong to another model.
    """
    ours = {our_name(key): value for key, value in state_dict.items()}
    expected = _expected(ours)
    for key, value in expected.items():
        if key not in ours and key.endswith(COUNTER):
            ours[key] = torch.zeros((), dtype=value.dtype)
        if key not in ours:
            raise _refusal(f"have no {key!r}")
        if ours[key].shape != value.shape:
            shapes = f"{tuple(ours[key].shape)}, not {tuple(value.shape)}"
            raise _refusal(f"have {key!r} of shape {shapes}")
    if unknown := sorted(ours.keys() - expected.keys()):
        raise _refusal(f"have an unknown tensor {unknown[0]!r}")
    return ours


def _expected(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Guess the model from the weights; return its tensors by name, on the meta device."""
    if {"stem.conv1.weight", LOGITS} <= ours.keys():
        return _built(*_retinanet(ours))
    model: Model
    if {"stem.conv1.weight", "head.fc.weight"} <= ours.keys():
        depth, image = _family(ours)
        model = ResNet(depth=depth, stem="imagenet")
    elif {"embed.conv_proj.weight", "embed.pos_embedding", "head.fc.weight"} <= ours.keys():
        model, image = _vit(ours)
    else:
        raise _refusal(f"are of no known model: the first is {next(iter(ours), 'nothing')!r}")
    return _built(model, image, Classification(len(ours["head.fc.weight"])))


def _built(model: Model, image: ImageSpec, task: Task) -> dict[str, Tensor]:
    with torch.device("meta"):
        return PlainModel(model.units(image, task)).state_dict()


def _retinanet(ours: Mapping[str, Tensor]) -> tuple[Model, ImageSpec, Task]:
    """Return a RetinaNet with the sizes of the weights, and images and a task for it.

    No weight depends on the sizes of images and anchors, so these are arbitrary.
    """
    classes = tuple(map(str, range(len(ours[LOGITS]) // ANCHORS)))
    task = Detection(classes, boxes=1, height=224, width=224, anchor=32)
    width = ours[LOGITS].shape[1]
    depth, image = _family(ours)
    norm: Norm = "group" if NORM in ours else "none"
    return RetinaNet(depth=depth, width=width, norm=norm), image, task


def _family(ours: Mapping[str, Tensor]) -> tuple[FamilyDepth, ImageSpec]:
    """Return the depth of the ResNet that has these residual units, and images for it."""
    counts = tuple(_children(ours, f"layer{group}.") for group in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in ours
    for depth, (kind, family_counts) in FAMILY.items():
        if counts == family_counts and bottleneck == (kind is BottleneckUnit):
            channels = ours["stem.conv1.weight"].shape[1]
            return depth, ImageSpec(channels, 224, 224)
    raise _refusal(f"have {counts} residual units in their groups")


def _vit(ours: Mapping[str, Tensor]) -> tuple[Model, ImageSpec]:
    """Return a ViT with the sizes of the weights, and images for it.

    No weight depends on `heads`, so its value is arbitrary.
    """
    dim, channels, patch = ours["embed.conv_proj.weight"].shape[:3]
    hidden = len(ours.get("blocks.0.mlp.0.weight", ()))
    if hidden == 0:
        raise _refusal("have no transformer block")
    model = ViT(
        dim=dim, depth=_children(ours, "blocks."), heads=1, patch=patch, mlp_ratio=hidden / dim
    )
    side = patch * isqrt(ours["embed.pos_embedding"].shape[1] - 1)
    return model, ImageSpec(channels, side, side)


def _children(ours: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of different name parts that directly follow a prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in ours if key.startswith(prefix)})


def _refusal(problem: str) -> ConfigError:
    remedy = "possible: ResNet-18, 34, 50, 101 or 152, a VisionTransformer, or a RetinaNet"
    return ConfigError("weights", "torchvision", f"these weights {problem}", remedy)
