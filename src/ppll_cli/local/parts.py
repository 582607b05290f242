"""Parts of networks and losses that several local methods share.

Legend: B batch, T tokens, D width of a token or vector, C channels, H height, W width of a map.
"""

from contextlib import nullcontext
from math import isqrt
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.names import class_path
from ppll_cli.tasks.task import Shape

Head = TypeVar("Head", bound=nn.Module)


class AsMap(nn.Module):
    """Converts features to maps [B, C, H, W].

    Maps are not changed. For transformers (our reading), patch tokens [B, T, D] are arranged in a
    square, in the order of the patches in the image. A class token at the front is added to each
    patch token, so that the class token is trained too. If the number of tokens fits no square, the
    tokens become a map with one column. Vectors [B, D] become maps of one pixel.
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


def map_shape(shape: Shape) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the maps that `AsMap` makes from features of `shape`."""
    channels, height, width = AsMap()(torch.empty(1, *shape, device="meta")).shape[1:]
    return channels, height, width


class Probe(nn.Module):
    """A network that is trained on a module's features but does not train the module.

    It measures the module's accuracy if the local loss makes no prediction, or if the loss of the
    prediction has the weight 0.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to the detached features."""
        y: Tensor = self.network(x.detach())
        return y


def gram(rows: Tensor) -> Tensor:
    """Compute the dot products of all pairs of rows, [B, D] to [B, B], always in float32."""
    kind = rows.device.type
    available = torch.amp.is_autocast_available(kind)  # False for the meta device
    with torch.autocast(kind, enabled=False) if available else nullcontext():
        return rows.float() @ rows.float().T


def drawn_by_he(network: nn.Module) -> nn.Module:
    """Initialise a network's convolutions by He's rule (fan out), and return the network."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def head_of(head: nn.Module, kind: type[Head], setting: tuple[str, object], other: str) -> Head:
    """Return the model's head if it has the class `kind`, which a setting requires.

    Otherwise raise a ConfigError that names the setting (its key and value). The message ends with
    `other`, which says what the user can do instead.
    """
    if isinstance(head, kind):
        return head
    problem = f"the model's head, {type(head).__name__}, is not a {kind.__name__}"
    remedy = f"derive it from {class_path(kind)}, or {other}"
    raise ConfigError(*setting, problem, remedy)
