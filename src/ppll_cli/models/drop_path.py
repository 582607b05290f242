"""Stochastic depth: in training, a residual block adds nothing to some of the samples."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Zeroes what a block's branch has made of a sample, drawn for each sample of a batch.

    What is not zeroed is divided by 1 - rate, so that the mean stays (arXiv 1603.09382; there it is
    evaluation that multiplies by 1 - rate). In evaluation nothing changes.

    Args:
        rate: Probability that a sample is zeroed.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate  # not public: units that differ in it alone cost the same (`structure`)

    def forward(self, x: Tensor) -> Tensor:
        """Batch [B, ...] to a batch of the same shape."""
        if not self.training:
            return x
        kept = 1 - self._rate
        factors = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(kept)
        return x * factors.div_(kept)


def drop_path_of(rate: float) -> nn.Module:
    """What zeroes a branch with this probability; it draws nothing where that is 0."""
    return DropPath(rate) if rate else nn.Identity()


def rates(last: float, blocks: int) -> list[float]:
    """A probability for each block: it grows evenly from 0 at the first to `last` at the last one.

    A single block has 0.
    """
    return [last * index / max(1, blocks - 1) for index in range(blocks)]
