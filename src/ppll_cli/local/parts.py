"""Parts of the networks and losses of several local methods.

Legend: B batch, T tokens, D width, C channels, H height, W width of a map.
"""

from contextlib import nullcontext
from math import isqrt
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError

Head = TypeVar("Head", bound=nn.Module)


class AsMap(nn.Module):
    """Converts features to maps [B, C, H, W].

    Our reading for transformers: patch tokens [B, T, D] are arranged in the square from which they
    were cut. A class token before them is added to each of them, because otherwise nothing would
    train it. Tokens that form no square become one column. Vectors [B, D] become maps of one pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convert features of any supported shape to maps."""
        if x.dim() == 2:
            return x[:, :, None, None]
        if x.dim() == 4:
            return x
        batch, tokens, width = x.shape
        side = isqrt(tokens)
        if side * side == tokens:
            return x.transpose(1, 2).reshape(batch, width, side, side)
        side = isqrt(tokens - 1)
        if side * side == tokens - 1:
            patches = x[:, 1:] + x[:, :1]
            return patches.transpose(1, 2).reshape(batch, width, side, side)
        return x.transpose(1, 2)[..., None]


def map_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the maps that `AsMap` makes from features of `shape`.

    Both shapes are without the batch dimension.
    """
    channels, height, width = AsMap()(torch.empty(1, *shape, device="meta")).shape[1:]
    return channels, height, width


class Probe(nn.Module):
    """A network that learns from features without training the module that makes them.

    If a local loss makes no prediction, or gives its prediction no weight, a probe gives the
    accuracy that is reported for the module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to the detached features."""
        y: Tensor = self.network(x.detach())
        return y


def gram(rows: Tensor) -> Tensor:
    """Return the dot products of all pairs of rows, [B, D] to [B, B], always in float32."""
    kind = rows.device.type
    available = torch.amp.is_autocast_available(kind)  # not for the meta device
    with torch.autocast(kind, enabled=False) if available else nullcontext():
        return rows.float() @ rows.float().T


def drawn_by_he(network: nn.Module) -> nn.Module:
    """Initialise a network's convolutions anew by He's rule (fan out), and return the network."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def head_of(
    head: nn.Module, kind: type[Head], says: str, setting: tuple[str, object], other: str
) -> Head:
    """Return the model's head if it is of a kind, which says of itself what a setting needs.

    Raises:
        ConfigError: The head is another one, of a user's own model.
    """
    if isinstance(head, kind):
        return head
    problem = f"the model's head, {type(head).__name__}, does not say {says}"
    remedy = f"derive it from {kind.__module__}.{kind.__qualname__}, or {other}"
    raise ConfigError(*setting, problem, remedy)
