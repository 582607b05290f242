"""A task that is not classification."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec


class OtherTask:
    """A task whose prediction is a number."""

    metric = "distance"
    lower_is_better = True
    targets: Mapping[str, ValueSpec] = {"target": ValueSpec((), torch.float32)}

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared error."""
        return (prediction - values["target"]).square().mean()

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """Return the loss as the only measurement."""
        return self.loss(prediction, values).double()[None, None]

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """Return the sum, and another number."""
        total = rows.sum().item()
        return {self.metric: total, "half": total / 2}

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """Return a network that returns one number per sample."""
        return nn.Linear(shape[0], 1)
