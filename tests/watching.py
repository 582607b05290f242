"""A local method for tests that watches later units and records the weights that it gets."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ppll_cli.local.method import Criterion, LocalMethod, Site, Watch


class Watching(LocalMethod):
    """Greedy local learning whose loss also depends on a later unit's weights.

    Args:
        lag: Age of the weights, in batches.
        unit: Index of the unit that all modules watch; None for the first unit of the next module.
    """

    def __init__(self, *, lag: int = 2, unit: int | None = None) -> None:
        self.lag, self.unit = lag, unit

    def criterion(self, site: Site) -> Criterion:
        """Return the greedy criterion with a term that depends on the weights."""
        return Watcher(site, Watch(site.stop if self.unit is None else self.unit, self.lag))


class Watcher(Criterion):
    """Records, for each batch, how many steps the received weights had."""

    steps: Tensor
    mean: Tensor

    def __init__(self, site: Site, watch: Watch) -> None:
        head = site.task.smallest_head(site.spec.shape)
        super().__init__(head, (site.feature,), site.task)
        self.watches = watch
        self.register_buffer("steps", torch.full((32,), -99))
        self.register_buffer("mean", torch.zeros(()))

    def see(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Record the number of steps of the received weights, which get some noise."""
        self.steps.copy_(torch.cat([self.steps[1:], self.steps.new_tensor([steps])]))
        total = sum((w.double().square().sum() for w in weights.values()), torch.zeros(()).double())
        self.mean.copy_(0.5 * self.mean + total + torch.rand(()))

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the greedy loss and a term that depends on all received weights."""
        loss, prediction = super().forward(values)
        (feature,) = self.features
        return loss + 0.01 * self.mean * values[feature].square().mean(), prediction
