"""Defines the contents of the feature bank for each task, and networks that read the bank.

The feature bank holds detached features of earlier modules (FBA, arXiv 2406.00446). "Banked"
features are features in the bank. Legend: B batch, C channels, D width of a token or vector, H
height, W width of a map, T tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.local.copies import CopiedNetwork, Copies
from ppll_cli.local.parts import head_of
from ppll_cli.tasks.classification import ClassifierHead, Pool, pooled_width
from ppll_cli.tasks.picture_heads import PictureHead, Upsampler
from ppll_cli.tasks.super_resolution import check_map
from ppll_cli.tasks.task import Shape

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d)


class Bank:
    """The bank for classification and for tasks that users wrote: it holds pooled vectors."""

    long_skips = False
    """Whether the bank holds, by default, the model's long skips: tensors that the model's head
    reads in addition to its input."""

    def form(self, shape: Shape) -> nn.Module | None:
        """Return a network without parameters that converts features for the bank.

        Return None if later modules cannot use features of this shape.
        """
        return Pool(len(shape))  # vectors keep messages between stages small

    def network(self, copies: Copies, banked: Sequence[Shape], bank: FeatureBank) -> nn.Module:
        """Return an auxiliary network that reads a module's features and banked features.

        Args:
            copies: Copied units and a copied head, from which the network is made.
            banked: Shape of each banked feature before `form` converts it; empty without a bank.
            bank: The options of the group `fba`.

        Raises:
            ConfigError: The model's head cannot be extended to read banked features.
        """
        head = self.head(copies.head, banked, bank) if banked else copies.head
        return CopiedNetwork(copies.units, head)

    def head(self, head: nn.Module, banked: Sequence[Shape], bank: FeatureBank) -> nn.Module:
        """Convert a copy of the model's head to a head that also reads banked features.

        Raises:
            ConfigError: The model's head cannot be converted.
        """
        own = head_of(head, ClassifierHead, ("fba", "on"), "use fba.join=input or fba=off")
        widths = [pooled_width(shape) for shape in banked]
        return FusedHead(own, widths, bank)

    def probe(self, head: nn.Module, banked: Sequence[Shape], bank: FeatureBank) -> nn.Module:
        """Return the additional head for `fba.trains=probe`: a classifier that reads the bank.

        It also reads the pooled vector of `head`. The module is trained not by this classifier, but
        by `head`, which does not read the bank.

        Raises:
            ConfigError: `head` is not a `ClassifierHead`.
        """
        own = head_of(head, ClassifierHead, ("fba", "on"), "use fba=off")
        return self.head(VectorHead(own.fc.in_features, own.fc.out_features), banked, bank)


class MapBank(Bank):
    """The bank for super-resolution: it holds maps, because pooling would lose details."""

    long_skips = True

    def form(self, shape: Shape) -> nn.Module:
        """Return the identity, so that the bank holds unchanged maps.

        Raises:
            ConfigError: The shape is not the shape of a map, [C, H, W].
        """
        check_map("fba", "on", shape)
        return nn.Identity()

    def head(self, head: nn.Module, banked: Sequence[Shape], bank: FeatureBank) -> nn.Module:
        """Convert a copy of the model's head to a head that also reads banked maps.

        Raises:
            ConfigError: `head` is not a `PictureHead`.
        """
        own = head_of(head, PictureHead, ("fba", "on"), "use fba=off")
        channels = [shape[0] for shape in banked]
        return FusedPictureHead(own, channels, bank)


class InputBank(Bank):
    """The bank for `fba.join=input`: it holds the outputs of earlier modules, not pooled."""

    def form(self, shape: Shape) -> nn.Module:
        """Return the identity, so that the bank holds unchanged features."""
        return nn.Identity()

    def network(self, copies: Copies, banked: Sequence[Shape], bank: FeatureBank) -> nn.Module:
        """Return an auxiliary network that fuses the bank with a module's features.

        Raises:
            ConfigError: Features of these shapes cannot be fused.
        """
        if not banked:
            return CopiedNetwork(copies.units, copies.head)
        return JoinedAtInput(copies, banked, bank.joined)


def fused(maps: Sequence[Tensor], fusion: str, dim: int = 1) -> Tensor:
    """Return the sum of features if `fusion` is "add"; otherwise their concatenation along `dim`.

    Features to add must have equal shapes.
    """
    return torch.stack([*maps]).sum(dim=0) if fusion == "add" else torch.cat([*maps], dim=dim)


def mixing(layer: Callable[[int, int], Layer], width: int, count: int) -> Layer:
    """Return a layer that reduces `count` concatenated features, each of `width`, to one `width`.

    `layer` makes the layer, given its numbers of inputs and outputs. With its initial weights, the
    layer returns the first of the concatenated features.
    """
    mix = layer(count * width, width)
    assert mix.bias is not None
    with torch.no_grad():
        nn.init.eye_(mix.weight.view(width, -1))
        nn.init.zeros_(mix.bias)
    return mix


_pointwise = partial(nn.Conv2d, kernel_size=1)


class VectorHead(ClassifierHead):
    """A head for vectors [B, D]: a Linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the vectors unchanged."""
        return x


class FusedHead(nn.Module):
    """A classifier that also reads banked vectors (FBA, arXiv 2406.00446; details are our choice).

    A Linear layer and ReLU project each banked vector to D, the width of the head's pooled vector.
    With `fba.fusion=add`, the head's last layer reads the sum of the pooled and the projected
    vectors. With `concatenate`, a Linear layer first reduces the concatenated vectors to width D;
    initially, it returns the pooled vector. With `shared_head=false`, there is no such layer, and
    the head gets a wider last layer.

    Args:
        head: The classifier, which this class may change.
        widths: Width of each banked vector.
        bank: Options. With `normalize`, each vector is first normalised to mean 0 and variance 1,
            so that modules with large activations do not outweigh others.
    """

    def __init__(self, head: ClassifierHead, widths: Sequence[int], bank: FeatureBank) -> None:
        super().__init__()
        self.head, self.fusion, self.normalize = head, bank.joined, bank.normalize
        width, joined = head.fc.in_features, head.fc.in_features * (1 + len(widths))
        self.projections = nn.ModuleList(nn.Linear(banked, width) for banked in widths)
        self.mix: nn.Linear | None = None
        if self.fusion == "concatenate" and bank.shared_head:
            self.mix = mixing(nn.Linear, width, 1 + len(widths))
        if not bank.shared_head:
            head.fc = nn.Linear(joined, head.fc.out_features)

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Return the logits [B, classes] for features and for banked vectors [B, width]."""
        own, *banked = [self.head.pooled(x), *bank]
        if self.normalize:
            own, *banked = [F.layer_norm(v, v.shape[1:]) for v in (own, *banked)]
        projected = [F.relu(p(b)) for p, b in zip(self.projections, banked, strict=True)]
        vector = fused([own, *projected], self.fusion)
        if self.mix is not None:
            vector = self.mix(vector)
        logits: Tensor = self.head.fc(vector)
        return logits


class FusedPictureHead(nn.Module):
    """A super-resolution head that also reads banked maps (details are our choice).

    This is our reading of FBA (arXiv 2406.00446): Upsampler(SLM_j(x_j) + stop-gradient(x_0)). x_j
    is the output of module j, SLM_j its auxiliary network before the upsampler, and x_0 the output
    of the model's first unit. The public repository Local-SR passes the detached x_0 to its local
    networks, but does not use this sum. If `fba.features` is not `first`, the bank holds maps of
    earlier modules instead of x_0 (our choice).

    The upsampler reads C channels. A 1x1 convolution projects a banked map with another number of
    channels to C. With `fba.fusion=add`, the upsampler reads the sum of the maps. With
    `concatenate`, a 1x1 convolution first reduces the concatenated maps to C channels; initially,
    it returns the head's own map. With `shared_head=false`, there is no such convolution, and a new
    upsampler reads all channels.

    Args:
        head: The head without a bank, which this class may change.
        channels: Number of channels of each banked map.
        bank: The options of the group `fba`.
    """

    def __init__(self, head: PictureHead, channels: Sequence[int], bank: FeatureBank) -> None:
        super().__init__()
        self.head, self.fusion = head, bank.joined
        old = head.upsampler
        width, joined = old.channels, old.channels * (1 + len(channels))
        self.projections = nn.ModuleList(
            nn.Identity() if banked == width else _pointwise(banked, width) for banked in channels
        )
        self.mix: nn.Conv2d | None = None
        if self.fusion == "concatenate" and bank.shared_head:
            self.mix = mixing(_pointwise, width, 1 + len(channels))
        elif self.fusion == "concatenate":
            head.upsampler = Upsampler(joined, old.scale, old.mean)

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Return pictures [B, 3, sH, sW], where s is the upsampler's scale.

        `x` has the module's features, and `bank` the banked maps [B, channels, H, W].
        """
        maps = [self.head.mapped(x)]
        # Detach: this module may have computed the first unit's output itself. The loss must not
        # train the first unit through the bank.
        maps += [p(b.detach()) for p, b in zip(self.projections, bank, strict=True)]
        joined = fused(maps, self.fusion)
        if self.mix is not None:
            joined = self.mix(joined)
        pictures: Tensor = self.head.upsampler(joined)
        return pictures


class JoinedAtInput(CopiedNetwork):
    """An auxiliary network that reads a module's features fused with the bank (our variant of FBA).

    Banked maps are averaged to the size of the module's map. Each banked feature has a Linear layer
    (for maps a 1x1 convolution) and ReLU, which project it to the width of the module's features.

    Args:
        copies: Copied units and a copied head, which read the fused features.
        banked: Shapes of the banked features. Like the module's features, they must all be maps
            [C, H, W], tokens [T, D] with equal T, or vectors [D].
        fusion: With `add`, all features are summed. With `concatenate`, another layer reduces the
            concatenated features to the width of the module's features. Initially, this layer
            returns the module's features.

    Raises:
        ConfigError: Features of these shapes cannot be fused.
    """

    def __init__(self, copies: Copies, banked: Sequence[Shape], fusion: str) -> None:
        super().__init__(copies.units, copies.head)
        own, self.fusion = copies.shapes[0], fusion
        self.maps = len(own) == 3
        layer: Callable[[int, int], nn.Linear | nn.Conv2d]
        layer = _pointwise if self.maps else nn.Linear
        for shape in banked:
            if len(shape) != len(own) or (len(own) == 2 and shape[0] != own[0]):
                problem = f"cannot join features {list(shape)} with features {list(own)}"
                raise ConfigError("fba.join", "input", problem, "use fba.join=head")
        width, widths = pooled_width(own), [pooled_width(shape) for shape in banked]
        self.projections = nn.ModuleList(layer(inputs, width) for inputs in widths)
        concatenated = fusion == "concatenate"
        self.mix = mixing(layer, width, 1 + len(widths)) if concatenated else None

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Return the prediction for a module's features and banked features."""
        return super().forward(self.joined(x, bank))

    def joined(self, x: Tensor, bank: Sequence[Tensor]) -> Tensor:
        """Return a module's features, fused with banked features, in the shape of `x`."""
        if self.maps:  # detached, because the pool's backward pass is not deterministic on CUDA
            size = x.shape[2], x.shape[3]
            bank = [F.adaptive_avg_pool2d(b.detach(), size) for b in bank]
        projected = (F.relu(p(b)) for p, b in zip(self.projections, bank, strict=True))
        joined = fused([x, *projected], self.fusion, dim=1 if self.maps else -1)
        return joined if self.mix is None else self.mix(joined)
