"""Decoupled greedy learning (Belilovsky et al., 2020)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.local.parts import AsMap, map_shape
from ppll_cli.models.unit import check_size
from ppll_cli.tasks.classification import classes_of


class AdaptivePool(nn.Module):
    """Average pooling to a size, or to the input's own size where that is smaller.

    Args:
        divisor: The output is this many times smaller than the input, rounded up.
        size: Height and width of the output, at most.
    """

    def __init__(self, *, divisor: int = 1, size: int | None = None) -> None:
        super().__init__()
        self.divisor, self.size = divisor, size

    def side(self, side: int) -> int:
        """Height or width of the output, given that of the input."""
        divided = -(-side // self.divisor)
        return divided if self.size is None else min(divided, self.size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, h, w]."""
        height, width = map(self.side, x.shape[2:])
        # What adaptive_avg_pool2d computes, with a backward that is deterministic on CUDA too.
        if x.shape[2] % height == 0 and x.shape[3] % width == 0:
            return F.avg_pool2d(x, (x.shape[2] // height, x.shape[3] // width))
        rows, columns = _averages(x.shape[2], height, x), _averages(x.shape[3], width, x)
        return rows @ x @ columns.T


def _averages(size: int, windows: int, like: Tensor) -> Tensor:
    """[windows, size]: row i takes the mean over window i of as many that cover a side."""
    window = torch.arange(windows, device=like.device)[:, None]
    position = torch.arange(size, device=like.device)
    first, behind = window * size // windows, ((window + 1) * size + windows - 1) // windows
    inside = ((position >= first) & (position < behind)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class DGL(LocalMethod):
    """Each module is trained through a small convolutional network and the task's loss.

    Pool to a quarter of the height and width, rounded up; three 1x1 convolutions, each with
    BatchNorm and ReLU; pool to 2x2; a perceptron with three hidden layers, each with BatchNorm and
    ReLU; Linear. The convolutions keep the number of channels, and the perceptron's layers are as
    wide as `hidden`.

    The layers and their initial weights, which are torch's own, are those of "mlp-sr" in the
    authors' code (github.com/eugenium/DGL, auxiliary_nets_study). The biases in front of BatchNorm
    do nothing; they are there so that both count the same parameters. A map of one pixel stays as
    it is (ours; the authors' code copies the pixel to 2x2). Other code uses other networks under
    this name: AugLocal's has two hidden layers and draws convolutions by He's rule; MAN++'s pools
    to 8x8, has 128 channels, pools to one pixel and has hidden layers of 512. InfoPro's comparison
    with DGL was published without code.

    Args:
        hidden: Width of the perceptron's hidden layers; null is as wide as what it reads, four
            times the module's channels where the map has at least 5 x 5 positions.
    """

    changed = "their pooling was mended"

    def __init__(self, *, hidden: int | None = None) -> None:
        if hidden is not None:
            check_size("local.hidden", hidden)
        self.hidden = hidden

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        classes_of(site.task, "dgl", key="local")  # its perceptron ends in vectors
        pools = AdaptivePool(divisor=4), AdaptivePool(size=2)
        return Criterion(dgl_network(site, pools, None, self.hidden), (site.feature,), site.task)


def dgl_network(
    site: Site,
    pools: tuple[AdaptivePool, AdaptivePool],
    channels: int | None,
    hidden: int | None,
) -> nn.Module:
    """Three 1x1 convolutions between two pools, and a perceptron with three hidden layers.

    Args:
        site: Whose features it reads.
        pools: The one before the convolutions and the one behind them.
        channels: Of each convolution's output; None: as many as the features have.
        hidden: Width of the hidden layers; None: as wide as what the first of them reads.
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
        linear = nn.Linear(inputs, outputs)
        perceptron += [linear, nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
    head = site.task.smallest_head((hidden,))
    return nn.Sequential(*convolutions, nn.Flatten(), *perceptron, head)
