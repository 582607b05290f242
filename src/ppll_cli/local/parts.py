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
    """Converts features to maps [B, C, H, W], so that convolutions can read features of any model.

    - Maps stay as they are. Vectors [B, D] become maps of one pixel.
    - If T is a square number, tokens [B, T, D] become a square map, in the order of the patches in
      the image (our reading).
    - If T - 1 is a square number, the first token is a class token, and the others become a square
      map. The class token is added to each of them, so that it is trained too.
    - For any other T, the map has one column.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convert features [B, D], [B, T, D] or [B, C, H, W] to maps."""
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
    """Measures how well a module's features predict, without an effect on the module's training.

    Its network is trained on the module's features, but no gradient passes to the module. A local
    method uses it if no prediction trains the module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to features `x`; no gradient passes to `x`."""
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
    """Return the model's head `head` after checking that it has the class `kind`.

    Args:
        head: The model's own head.
        kind: The required class.
        setting: Key and value of the setting that requires this class, for the error.
        other: What the user can do instead, for the end of the error.

    Raises:
        ConfigError: The head has another class.
    """
    if isinstance(head, kind):
        return head
    problem = f"the model's head, {type(head).__name__}, is not a {kind.__name__}"
    remedy = f"derive it from {class_path(kind)}, or {other}"
    raise ConfigError(*setting, problem, remedy)
