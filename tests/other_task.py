"""A task that is not classification."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec


class OtherTask:
    """Predict a number."""

    metric = "distance"
    targets: Mapping[str, ValueSpec] = {"target": ValueSpec((), torch.float32)}

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error."""
        return (prediction - values["target"]).square().mean()

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """The loss."""
        return self.loss(prediction, values).double()[None, None]

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """The sum, and another number."""
        total = rows.sum().item()
        return {self.metric: total, "half": total / 2}

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """A number for each sample."""
        return nn.Linear(shape[0], 1)
