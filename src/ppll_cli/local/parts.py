"""What the networks and losses of several local methods are made of.

Legend: B batch, T tokens, D width, C channels, H height, W width of a map.
"""

from contextlib import nullcontext
from math import isqrt

import torch
from torch import Tensor, nn


class AsMap(nn.Module):
    """Features as maps [B, C, H, W].

    Our reading for transformers: patch tokens [B, T, D] are laid out as the square that they were
    cut from; a class token in front of them is added to each, or nothing would train it; tokens
    that make no square become one column. Vectors [B, D] become maps of one pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features of any shape to maps."""
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
    """(C, H, W) of what `AsMap` makes of features of this shape (no batch dimension)."""
    channels, height, width = AsMap()(torch.empty(1, *shape, device="meta")).shape[1:]
    return channels, height, width


class Probe(nn.Module):
    """A network that learns from features without training what makes them.

    Where a local loss has no prediction, or gives it no weight, a probe beside it says how much
    the features tell: the accuracy that is reported of the module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of the detached features."""
        y: Tensor = self.network(x.detach())
        return y


def gram(rows: Tensor) -> Tensor:
    """The products of each two rows, [B, D] to [B, B], in float32 also under autocast."""
    kind = rows.device.type
    available = torch.amp.is_autocast_available(kind)  # the meta device has none to switch off
    with torch.autocast(kind, enabled=False) if available else nullcontext():
        return rows.float() @ rows.float().T


def drawn_by_he(network: nn.Module) -> nn.Module:
    """The same network, its convolutions' weights drawn anew by He's rule (fan out)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network
