"""DGL: decoupled greedy learning (Belilovsky et al., 2020)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.leaves.limits import Size
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.local.parts import AsMap, map_shape
from ppll_cli.tasks.classification import classes_of


class AdaptivePool(nn.Module):
    """Average pooling of feature maps to a smaller height and width.

    Each side is divided by `divisor` and rounded up. If the result exceeds `size`, it is `size`.
    """

    def __init__(self, *, divisor: int = 1, size: int | None = None) -> None:
        super().__init__()
        self.divisor, self.size = divisor, size

    def side(self, side: int) -> int:
        """Return the output's height or width for the input's height or width."""
        divided = -(-side // self.divisor)
        return divided if self.size is None else min(divided, self.size)

    def forward(self, x: Tensor) -> Tensor:
        """Pool [B, C, H, W] to [B, C, h, w]."""
        height, width = map(self.side, x.shape[2:])
        # This computes the same as adaptive_avg_pool2d, which is not used because its backward
        # pass is not deterministic on CUDA.
        if x.shape[2] % height == 0 and x.shape[3] % width == 0:
            return F.avg_pool2d(x, (x.shape[2] // height, x.shape[3] // width))
        rows, columns = _averages(x.shape[2], height, x), _averages(x.shape[3], width, x)
        return rows @ x @ columns.T


def _averages(size: int, windows: int, like: Tensor) -> Tensor:
    # a matrix [windows, size] with the windows of torch's adaptive pooling
    window = torch.arange(windows, device=like.device)[:, None]
    position = torch.arange(size, device=like.device)
    first, behind = window * size // windows, ((window + 1) * size + windows - 1) // windows
    inside = ((position >= first) & (position < behind)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


@dataclass(kw_only=True, eq=False)
class DGL(LocalMethod):
    """Trains each module through a small convolutional network and the task's loss.

    The network pools the module's output to a quarter of its height and width, rounded up. Then
    come three 1x1 convolutions, which keep the number of channels, and a pooling to at most 2x2. A
    perceptron with three hidden layers makes the prediction. BatchNorm and ReLU follow each
    convolution and hidden layer. The task must be classification.

    The layers are those of "mlp-sr" in the authors' code (github.com/eugenium/DGL,
    auxiliary_nets_study). But a map of one pixel is not enlarged (our choice; the authors' code
    copies the pixel to 2x2). In MAN++'s code, "DGL" is another network, which is `loss=dgl` of
    `MAN` here.

    Attributes:
        hidden: Width of the hidden layers. None means the width of the perceptron's input: four
            times the module's channels, if its output is at least 5 pixels high and wide.
    """

    changed = "their pooling was corrected"

    hidden: Size | None = None

    def criterion(self, site: Site) -> Criterion:  # noqa: D102
        classes_of(site.task, "dgl", key="local")  # refuses all tasks except classification
        pools = AdaptivePool(divisor=4), AdaptivePool(size=2)
        return Criterion(dgl_network(site, pools, None, self.hidden), (site.feature,), site.task)


def dgl_network(
    site: Site,
    pools: tuple[AdaptivePool, AdaptivePool],
    channels: int | None,
    hidden: int | None,
) -> nn.Module:
    """Return an auxiliary network: a pool, three 1x1 convolutions, a pool, and a perceptron.

    Features that are not maps are first converted by `AsMap`. The perceptron has three hidden
    layers, and ends with the task's head (`Task.smallest_head`).

    Args:
        site: Describes the module whose output the network reads.
        pools: The pools before and after the convolutions.
        channels: Number of channels after each convolution; None for the module's number.
        hidden: Width of the hidden layers; None for the width of the perceptron's input.
    """
    first, height, width = map_shape(site.spec.shape)
    channels = channels or first
    convolutions: list[nn.Module] = []
    for inputs, outputs in pairwise([first, channels, channels, channels]):
        convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
        convolutions += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    before, behind = pools
    convolutions = [AsMap(), before, *convolutions, behind]
    values = channels * behind.side(before.side(height)) * behind.side(before.side(width))
    hidden = hidden or values
    perceptron: list[nn.Module] = []
    for inputs, outputs in pairwise([values, hidden, hidden, hidden]):
        # Before BatchNorm, biases have no effect, but the authors count them as parameters.
        linear = nn.Linear(inputs, outputs)
        perceptron += [linear, nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
    head = site.task.smallest_head((hidden,))
    return nn.Sequential(*convolutions, nn.Flatten(), *perceptron, head)
