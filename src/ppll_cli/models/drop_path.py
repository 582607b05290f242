"""Stochastic depth: in training, a residual block adds nothing for some of the samples."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Zeroes the output of a block's branch for random samples of a batch.

    The other outputs are divided by 1 - rate, which preserves the mean (arXiv 1603.09382, where
    evaluation multiplies by 1 - rate instead). Evaluation changes nothing.

    Args:
        rate: Probability that a sample is zeroed, 0 or more and below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate  # private, because units that differ only in it cost the same

    def forward(self, x: Tensor) -> Tensor:
        """Return a batch of the shape of `x`, [B, ...]."""
        if not self.training:
            return x
        kept = 1 - self._rate
        factors = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(kept)
        return x * factors.div_(kept)


def drop_path_of(rate: float) -> nn.Module:
    """Return a `DropPath`, or if `rate` is 0 an identity, which draws no random numbers."""
    return DropPath(rate) if rate else nn.Identity()


def rates(last: float, blocks: int) -> list[float]:
    """Return each block's probability, which grows linearly from 0 to `last` at the last block.

    A single block has 0.
    """
    return [last * index / max(1, blocks - 1) for index in range(blocks)]
