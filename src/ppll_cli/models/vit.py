"""Vision transformers with torchvision's layers (arXiv 2010.11929).

Legend: B batch, T tokens, D width, C channels, H height, W width of the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.config.targets import check_options
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import MOST_SIZE, Depth, Fraction, Size
from ppll_cli.models.drop_path import drop_path_of, rates
from ppll_cli.models.unit import IMAGE, ImageSpec, Unit, check_images
from ppll_cli.tasks.classification import ClassifierHead, classes_of
from ppll_cli.tasks.task import Task

Pooling = Literal["cls", "mean"]

NORM_EPS = 1e-6
"""Epsilon of every LayerNorm, as in torchvision; PyTorch's own default is 1e-5."""


class Embed(nn.Module):
    """Converts patches to tokens by a convolution, and adds a position embedding.

    Args:
        channels: C, the number of channels of the images.
        patch: Height and width of a patch in pixels.
        patches: Number of patches of an image.
        dim: D, the width of a token.
        class_token: Whether a class token is put before the tokens of the patches.
        dropout: Probability that a value of a token is zeroed.
    """

    def __init__(
        self, channels: int, patch: int, patches: int, dim: int, class_token: bool, dropout: float
    ) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (channels * patch * patch)))
        assert self.conv_proj.bias is not None  # for mypy
        nn.init.zeros_(self.conv_proj.bias)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.pos_embedding = nn.Parameter(torch.empty(1, patches + class_token, dim))
        nn.init.normal_(self.pos_embedding, std=0.02)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Convert an image [B, C, H, W] to tokens [B, T, D], T = patches (+ 1 with class token)."""
        x: Tensor = self.conv_proj(image).flatten(2).transpose(1, 2)
        if self.class_token is None:
            # Without this copy, all later tokens would keep the transposed strides, which would
            # slow down every residual sum.
            x = x.contiguous()
        else:
            x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1)
        tokens: Tensor = self.dropout(x + self.pos_embedding)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention with the same parameters as `nn.MultiheadAttention`."""

    # torch's class is not used, because it works on [T, B, D]: with it, training on a CPU takes 1.1
    # to 1.4 times as long. In evaluation, torch's class uses another algorithm, whose results
    # differ in the last bits.

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [B, T, D]; their shape stays the same."""
        batch, tokens, _ = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # [B, T, 3D] -> three of [B, heads, T, D / heads]
        split = projected.view(batch, tokens, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0
        )
        y: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    """A pre-norm transformer block with two branches, each with a skip around it.

    The first branch is attention; the second is a network of two layers.

    Args:
        dim: D, the width of a token.
        heads: Number of attention heads.
        hidden: Width of the hidden layer of the second branch.
        dropout: Probability that a value is zeroed in the outputs of both branches, and in the
            hidden layer.
        attention_dropout: Probability that an attention weight is zeroed.
        rate: Probability that a branch is zeroed for a sample.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        attention_dropout: float,
        rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.self_attention = Attention(dim, heads, attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.drop_path = drop_path_of(rate)
        inner, outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.mlp = nn.Sequential(inner, nn.GELU(), nn.Dropout(dropout), outer, nn.Dropout(dropout))
        for linear in (inner, outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [B, T, D]; their shape stays the same."""
        x = x + self.drop_path(self.dropout(self.self_attention(self.ln_1(x))))
        y: Tensor = x + self.drop_path(self.mlp(self.ln_2(x)))
        return y


class Head(ClassifierHead):
    """LayerNorm, pooling over tokens, and a Linear layer that starts at zero, as in torchvision."""

    def __init__(self, dim: int, classes: int, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        self.ln = nn.LayerNorm(dim, eps=NORM_EPS)
        self.fc = nn.Linear(dim, classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def pooled(self, x: Tensor) -> Tensor:  # noqa: D102
        # LayerNorm works on each token separately, so `cls` needs it only for the class token.
        vectors: Tensor = self.ln(x[:, 0]) if self.pooling == "cls" else self.ln(x).mean(dim=1)
        return vectors


@dataclass(frozen=True, kw_only=True)
class ViT:
    """A vision transformer for classification: units `embed`, `blocks.0` ... and `head`.

    Attributes:
        dim: D, the width of a token.
        depth: Number of transformer blocks.
        heads: Number of attention heads in a block; a divisor of `dim`.
        patch: Height and width of a patch in pixels.
        mlp_ratio: Width inside a block's two-layer network, as a multiple of `dim`.
        pooling: What the head reads: a class token (`cls`), or the mean over all patches (`mean`).
        dropout: Probability that a value is zeroed, after the embedding and inside each block.
        attention_dropout: Probability that an attention weight is zeroed.
        drop_path: Probability that a branch of the last block is zeroed for a sample. The
            probability grows linearly from 0 at the first block (stochastic depth, arXiv
            1603.09382).
    """

    dim: Size
    depth: Depth
    heads: Size
    patch: Size
    mlp_ratio: float = 4.0
    pooling: Pooling = "cls"
    dropout: Fraction = 0.0
    attention_dropout: Fraction = 0.0
    drop_path: Fraction = 0.0

    def __post_init__(self) -> None:
        check_options("model", self)
        if not (math.isfinite(self.mlp_ratio) and self.hidden >= 1):
            raise ConfigError(
                "model.mlp_ratio", self.mlp_ratio, "leaves no hidden layer", "use 4, for example"
            )
        if self.hidden > MOST_SIZE:
            problem = f"makes layers wider than {MOST_SIZE}"
            raise ConfigError("model.mlp_ratio", self.mlp_ratio, problem, "use a smaller ratio")
        if self.dim % self.heads:
            problem = f"does not divide model.dim={self.dim}"
            raise ConfigError("model.heads", self.heads, problem, _divisors(self.dim))

    @property
    def hidden(self) -> int:
        """Width inside a block's two-layer network."""
        return round(self.dim * self.mlp_ratio)

    def units(self, image: ImageSpec, task: Task) -> Sequence[Unit]:
        """Return the units; all except `embed` read the previous unit's tokens `x` [B, T, D].

        Raises:
            ConfigError: The task has no classes, the data have no images, or `patch` does not
                divide their height and width.
        """
        classes = classes_of(task, "vit")
        check_images(image, "vit")
        embed = partial(
            Embed,
            channels=image.channels,
            patch=self.patch,
            patches=self._patches(image),
            dim=self.dim,
            class_token=self.pooling == "cls",
            dropout=self.dropout,
        )
        block = partial(
            Block,
            dim=self.dim,
            heads=self.heads,
            hidden=self.hidden,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )
        head = partial(Head, dim=self.dim, classes=classes, pooling=self.pooling)
        return [
            Unit("embed", embed, reads=(IMAGE,)),
            *(
                Unit(f"blocks.{index}", partial(block, rate=rate))
                for index, rate in enumerate(rates(self.drop_path, self.depth))
            ),
            Unit("head", head, writes=("prediction",)),
        ]

    def _patches(self, image: ImageSpec) -> int:
        if image.height % self.patch or image.width % self.patch:
            problem = f"does not divide the image's {image.height} x {image.width} pixels"
            remedy = _divisors(math.gcd(image.height, image.width))
            raise ConfigError("model.patch", self.patch, problem, remedy)
        return (image.height // self.patch) * (image.width // self.patch)


def _divisors(number: int) -> str:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    every = sorted({*small, *(number // divisor for divisor in small)})
    return f"possible: {', '.join(map(str, every))}"
