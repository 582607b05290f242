"""Vision transformers, compared with torchvision's."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import EncoderBlock

from ppll_cli.errors import ConfigError
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.torchvision_weights import from_torchvision
from ppll_cli.models.unit import ImageSpec
from ppll_cli.models.vit import Block, Embed, Head, Pooling, ViT
from ppll_cli.tasks.classification import Classification

CLASSES = 7
IMAGE = ImageSpec(3, 32, 32)
SMALL = ViT(dim=32, depth=2, heads=2, patch=8, mlp_ratio=2.0)

# Outputs are compared in float64, where rounding errors are far below the tolerance. torchvision's
# attention has the batch in another dimension, so it may add in another order.


def reference(dropout: float = 0.0, attention_dropout: float = 0.0) -> VisionTransformer:
    """Return a small model of torchvision with random parameters. Some would be zero initially."""
    model = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        dropout=dropout,
        attention_dropout=attention_dropout,
        num_classes=CLASSES,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double()


def same_weights(theirs: VisionTransformer, model: ViT = SMALL) -> PlainModel:
    ours = PlainModel(model.units(IMAGE, Classification(CLASSES))).double()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    return ours


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64)


def gradients(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    model(image).square().sum().backward()
    found = {key: value.grad for key, value in model.named_parameters()}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize("grad", [True, False])  # torchvision has two ways to compute
def test_outputs_equal_torchvisions(grad: bool) -> None:
    theirs = reference().eval()
    ours = same_weights(theirs).eval()
    image = images(3)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(ours(image), theirs(image))


def test_training_gradients_equal_torchvisions() -> None:
    theirs = reference()
    ours = same_weights(theirs)
    image = images(4)
    expected = from_torchvision(gradients(theirs, image))
    torch.testing.assert_close(gradients(ours, image), expected)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_where_torchvision_has_it(
    monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """A factor replaces dropout, because zeroed values depend on the order in memory."""
    attend = F.scaled_dot_product_attention

    def dropout(x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        return x * (1 + p) if training else x

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        return attend(query, key, value) * (1 + dropout_p)

    monkeypatch.setattr(F, "dropout", dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    theirs = reference(dropout=0.2, attention_dropout=0.3).train(training)
    model = replace(SMALL, dropout=0.2, attention_dropout=0.3)
    ours = same_weights(theirs, model).train(training)
    image = images(3)
    torch.testing.assert_close(ours(image), theirs(image))
    assert torch.allclose(ours(image), same_weights(theirs)(image)) == (not training)


def test_mean_pooling_is_the_mean_of_the_patches_only() -> None:
    theirs = reference()
    model = replace(SMALL, pooling="mean")
    ours = PlainModel(model.units(IMAGE, Classification(CLASSES))).double()
    weights = from_torchvision(theirs.state_dict())
    del weights["embed.class_token"]
    weights["embed.pos_embedding"] = weights["embed.pos_embedding"][:, 1:]
    ours.load_state_dict(weights)

    image = images(3)
    tokens = theirs.conv_proj(image).flatten(2).transpose(1, 2)
    tokens = theirs.encoder.layers(tokens + theirs.encoder.pos_embedding[:, 1:])
    expected = theirs.heads(theirs.encoder.ln(tokens).mean(dim=1))
    torch.testing.assert_close(ours(image), expected)


def test_a_block_has_torchvisions_initial_weights() -> None:
    torch.manual_seed(1)
    theirs = EncoderBlock(2, 32, 64, dropout=0.0, attention_dropout=0.0).state_dict()
    torch.manual_seed(1)
    ours = Block(32, 2, 64, dropout=0.0, attention_dropout=0.0).state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


def test_initial_embedding_and_head_are_distributed_like_torchvisions() -> None:
    theirs = VisionTransformer(
        image_size=32, patch_size=4, num_layers=1, num_heads=2, hidden_dim=256, mlp_dim=8
    ).state_dict()
    embed = Embed(channels=3, patch=4, patches=64, dim=256, class_token=True, dropout=0.0)
    head = Head(dim=256, classes=1000, pooling="cls")
    ours = {f"embed.{key}": value for key, value in embed.state_dict().items()}
    ours |= {f"head.{key}": value for key, value in head.state_dict().items()}
    expected = {k: v for k, v in from_torchvision(theirs).items() if not k.startswith("blocks.")}
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        # with 12288 values or more, both deviations are within 5 % of the distribution's
        torch.testing.assert_close(ours[key].std(), value.std(), rtol=0.05, atol=0.0, msg=key)
        torch.testing.assert_close(ours[key].mean(), value.mean(), rtol=0.0, atol=0.01, msg=key)


def test_units_are_in_order() -> None:
    units = SMALL.units(IMAGE, Classification(CLASSES))
    assert [(unit.name, unit.reads, unit.writes) for unit in units] == [
        ("embed", ("image",), ("x",)),
        ("blocks.0", ("x",), ("x",)),
        ("blocks.1", ("x",), ("x",)),
        ("head", ("x",), ("prediction",)),
    ]


@pytest.mark.parametrize(("pooling", "tokens"), [("cls", 13), ("mean", 12)])
def test_channels_and_shape_follow_the_image(pooling: Pooling, tokens: int) -> None:
    model = ViT(dim=32, depth=1, heads=2, patch=8, pooling=pooling)
    plain = PlainModel(model.units(ImageSpec(1, 24, 32), Classification(CLASSES)))
    image = torch.randn(2, 1, 24, 32)
    assert plain.get_submodule("embed")(image).shape == (2, tokens, 32)
    assert plain(image).shape == (2, CLASSES)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_tokens_are_contiguous_in_memory(
    pooling: Pooling, memory_format: torch.memory_format
) -> None:
    """Adding the position embedding once kept the transposed strides of the convolution."""
    model = ViT(dim=32, depth=1, heads=2, patch=8, pooling=pooling)
    plain = PlainModel(model.units(IMAGE, Classification(CLASSES)))
    image = torch.randn(2, 3, 32, 32).contiguous(memory_format=memory_format)
    assert plain.get_submodule("embed")(image).is_contiguous()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "model.heads=5: does not divide model.dim=32; possible: 1, 2, 4, 8, 16, 32"),
        ({"dim": 0}, "model.dim=0: must be greater than or equal to 1"),
        ({"depth": 0}, "model.depth=0: must be greater than or equal to 1"),
        ({"heads": -1}, "model.heads=-1: must be greater than or equal to 1"),
        ({"patch": 0}, "model.patch=0: must be greater than or equal to 1"),
        ({"mlp_ratio": 0.0}, "model.mlp_ratio=0.0: leaves no hidden layer; use 4, for example"),
        (
            {"mlp_ratio": float("nan")},
            "model.mlp_ratio=nan: leaves no hidden layer; use 4, for example",
        ),
        ({"pooling": "max"}, "model.pooling=max: must be 'cls' or 'mean'"),
        ({"dropout": 1.0}, "model.dropout=1.0: must be less than 1"),
        (
            {"attention_dropout": -0.1},
            "model.attention_dropout=-0.1: must be greater than or equal to 0",
        ),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    legal: dict[str, object] = {"dim": 32, "depth": 2, "heads": 2, "patch": 8}
    with pytest.raises(ConfigError) as refusal:
        ViT(**(legal | options))  # type: ignore[arg-type]  # wrong values
    assert str(refusal.value) == message


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        SMALL.units(ImageSpec(3, 28, 42), Classification(CLASSES))
    assert str(refusal.value) == (
        "model.patch=8: does not divide the image's 28 x 42 pixels; possible: 1, 2, 7, 14"
    )
