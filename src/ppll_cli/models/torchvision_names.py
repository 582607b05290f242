"""Names that torchvision gives to weights, and ours. Imports no torchvision."""

PREFIXES = {
    # ResNet; its residual units have our names already
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
"""How keys begin there and here."""

BODY = "backbone.body."
"""Before the names of a ResNet in a RetinaNet."""

COUNTER = ".num_batches_tracked"
"""A buffer that BatchNorm did not always have; files written earlier lack it."""


OLD_NAMES = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}
"""Names from before github.com/pytorch/vision/pull/6053, as files written earlier have them."""


def our_name(key: str) -> str:
    """The name that a tensor of a torchvision model has here."""
    key = key.removeprefix(BODY)
    for theirs, ours in PREFIXES.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    for old, new in OLD_NAMES.items():
        key = key.replace(old, new)
    return key
