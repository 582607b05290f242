"""The feature bank that is joined to the input of the Simple Local Module (our own variant).

Legend: B batch, C channels, D width, H height, W width of a map, T tokens.
"""

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.local.bank import Bank, fused
from ppll_cli.local.copies import CopiedNetwork, Copies
from ppll_cli.tasks.classification import pooled_width
from ppll_cli.tasks.task import Shape


class InputBank(Bank):
    """The bank for `fba.join=input`: it holds the outputs of earlier modules, not pooled."""

    def form(self, shape: Shape) -> nn.Module:
        """Return the identity, so that the bank holds unchanged features."""
        return nn.Identity()

    def network(self, copies: Copies, banked: Sequence[Shape], bank: FeatureBank) -> nn.Module:
        """Return a network of copied units and head that fuses its input with banked features."""
        if not banked:
            return CopiedNetwork(copies.units, copies.head)
        return JoinedAtInput(copies, banked, bank.joined)


class JoinedAtInput(CopiedNetwork):
    """A Simple Local Module that reads a module's features fused with the bank (our variant).

    All features have the same kind of shape: maps [B, C, H, W], tokens [B, T, D] or vectors [B, D].
    Banked maps are averaged to the size of the module's map. A Linear layer (for maps a 1x1
    convolution) and ReLU project each banked tensor to the width of the module's features. `add`
    sums the projections and the module's features. `concatenate` concatenates them, and another
    Linear layer (or 1x1 convolution), which initially returns the module's features, reduces the
    result to their width. `banked` are the shapes of banked features.
    """

    def __init__(self, copies: Copies, banked: Sequence[Shape], fusion: str) -> None:
        super().__init__(copies.units, copies.head)
        own, self.fusion = copies.shapes[0], fusion
        self.maps = len(own) == 3
        for shape in banked:
            if len(shape) != len(own) or (len(own) == 2 and shape[0] != own[0]):
                problem = f"cannot join features {list(shape)} with features {list(own)}"
                raise ConfigError("fba.join", "input", problem, "use fba.join=head")
        width, widths = pooled_width(own), [pooled_width(shape) for shape in banked]
        self.projections = nn.ModuleList(self._layer(inputs, width) for inputs in widths)
        self.mix: nn.Module | None = None
        if fusion == "concatenate":
            self.mix = self._layer(width * (1 + len(banked)), width)
            with torch.no_grad():
                nn.init.eye_(self.mix.weight.view(width, -1))
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Return the prediction for a module's features and banked features."""
        return super().forward(self.joined(x, bank))

    def joined(self, x: Tensor, bank: Sequence[Tensor]) -> Tensor:
        """Fuse banked features into a module's features, whose shape does not change."""
        if self.maps:  # detached, because the pool's backward pass is not deterministic on CUDA
            size = x.shape[2], x.shape[3]
            bank = [F.adaptive_avg_pool2d(b.detach(), size) for b in bank]
        projected = (F.relu(p(b)) for p, b in zip(self.projections, bank, strict=True))
        joined = fused(list(chain((x,), projected)), self.fusion, dim=1 if self.maps else -1)
        return joined if self.mix is None else self.mix(joined)

    def _layer(self, inputs: int, outputs: int) -> nn.Conv2d | nn.Linear:
        return nn.Conv2d(inputs, outputs, 1) if self.maps else nn.Linear(inputs, outputs)
