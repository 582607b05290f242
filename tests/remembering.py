"""A local method for tests whose losses depend on what its networks remember of earlier batches."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import Unit


class Remembering(LocalMethod):
    """Greedy local learning whose loss also depends on buffers that change in training.

    With `exports`, a module also reads what the first module remembers.
    """

    def __init__(self, *, exports: bool = False) -> None:
        self._exports = exports

    def criterion(self, site: Site) -> Criterion:
        """Return the greedy criterion with a term that depends on buffers."""
        return Memory(site, ("remembered",) if self._exports and site.module else ())

    def exports(self, site: Site) -> Sequence[Unit]:
        """Return a unit of the first module that has buffers."""
        if not self._exports or site.module:
            return ()
        return (Unit("remembered", Exported, (site.feature,), ("remembered",)),)


class Memory(Criterion):
    """Remembers the last means of the features, and the number of batches.

    A dtype that gloo does not know, and a buffer whose elements share memory, are among the
    buffers.
    """

    means: Tensor
    batches: Tensor
    same: Tensor

    def __init__(self, site: Site, also: tuple[str, ...]) -> None:
        super().__init__(site.task.smallest_head(site.spec.shape), (site.feature,), site.task)
        self.also = also
        self.reads += also
        self.register_buffer("means", torch.zeros(4))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int16), persistent=False)
        self.register_buffer("same", torch.ones(1).expand(3), persistent=False)

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the greedy loss and a term that depends on all buffers."""
        loss, prediction = super().forward(values)
        mean = values[self.features[0]].mean()
        factor = self.means.sum() + self.batches + self.same.sum()
        for name in self.also:
            factor = factor + values[name].mean()
        if self.training:
            self.means = torch.cat([self.means[1:], mean.detach()[None]])
            self.batches += 1
        return loss + factor * mean, prediction


class Exported(nn.Module):
    """Returns an average of the means of all batches, once for each sample."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Update the average in training, and return it."""
        if self.training:
            self.average.lerp_(x.mean(), 0.5)
        return self.average.expand(len(x)).clone()
