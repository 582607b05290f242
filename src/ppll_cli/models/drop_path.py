"""Stochastic depth: in training, a residual block's branch is skipped for random samples."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Zeroes the output of a block's branch for random samples of a batch.

    Each sample is zeroed with probability `rate`, below 1. All other samples are divided by 1 -
    rate, which preserves the mean. In evaluation nothing is changed. (In arXiv 1603.09382, outputs
    are multiplied by 1 - rate in evaluation instead.)
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        # Private: units that differ only in private attributes are regarded as equally fast, and
        # only one of them is measured.
        self._rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor with the same shape as `x`, [B, ...]."""
        if not self.training:
            return x
        kept = 1 - self._rate
        factors = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(kept)
        return x * factors.div_(kept)


def drop_path_of(rate: float) -> nn.Module:
    """Return a `DropPath`. If `rate` is 0, return an identity, which needs no random numbers."""
    return DropPath(rate) if rate else nn.Identity()


def rates(last: float, blocks: int) -> list[float]:
    """Return the rate of each block, which grows linearly from 0 (first block) to `last`.

    If there is only one block, its rate is 0.
    """
    return [last * index / max(1, blocks - 1) for index in range(blocks)]
