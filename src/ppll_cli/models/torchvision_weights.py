"""Renames the weights of torchvision's models to this program's names. Does not use torchvision."""

from collections.abc import Mapping

from torch import Tensor

PREFIXES = {
    # ResNet, whose residual units keep their names
    "conv1.": "stem.conv1.",
    "bn1.": "stem.bn1.",
    "fc.": "head.fc.",
    # VisionTransformer
    "conv_proj.": "embed.conv_proj.",
    "class_token": "embed.class_token",
    "encoder.pos_embedding": "embed.pos_embedding",
    "encoder.layers.encoder_layer_": "blocks.",
    "encoder.ln.": "head.ln.",
    "heads.head.": "head.fc.",
    # RetinaNet
    "backbone.fpn.": "head.fpn.",
    "head.classification_head.": "head.head.classification_head.",
    "head.regression_head.": "head.head.regression_head.",
}
"""Prefixes of torchvision's names, and their replacements in this program."""

BODY = "backbone.body."
"""Prefix of the ResNet's names in torchvision's RetinaNet."""

COUNTER = ".num_batches_tracked"
"""End of the name of a BatchNorm buffer that older files lack."""

OLD_NAMES = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}
"""Parts of names in older files, and their replacements since
github.com/pytorch/vision/pull/6053."""


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a torchvision model, for `PlainModel.load_state_dict`.

    The tensors are not copied. These models are supported:

    - ResNet-18, 34, 50, 101 and 152, as `ResNet` with `stem="imagenet"`.
    - VisionTransformer, as `ViT` with `pooling="cls"` and the same number of heads.
    - RetinaNet with one of these ResNets and with P6 made from P5, as `RetinaNet`.
    """
    return {our_name(key): tensor for key, tensor in state_dict.items()}


def our_name(key: str) -> str:
    """Return this program's name for a tensor of a torchvision model."""
    key = key.removeprefix(BODY)
    for theirs, ours in PREFIXES.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    for old, new in OLD_NAMES.items():
        key = key.replace(old, new)
    return key
