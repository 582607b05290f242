"""Losses of modules with a feature bank, and the predictions that only evaluations measure."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ppll_cli.local.copies import CopiedNetwork
from ppll_cli.local.method import Criterion
from ppll_cli.tasks.classification import ClassifierHead
from ppll_cli.tasks.task import Task

PROBE, ZEROED = "probe", "bank_zeroed"
"""Names of predictions that only evaluations measure: `PROBE` is the probe's prediction, `ZEROED`
the prediction of the network that reads the bank, with zeros in place of banked features."""


class BankedCriterion(Criterion):
    """The task's loss on the prediction of a network that reads a feature bank.

    With `measure_zeroed`, evaluations also measure the prediction for a bank of zeros.
    """

    def __init__(
        self, network: nn.Module, features: tuple[str, ...], task: Task, measure_zeroed: bool
    ) -> None:
        super().__init__(network, features, task)
        if measure_zeroed and len(features) > 1:
            self.further = (ZEROED,)

    def predict_further(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the prediction that the head makes from a bank of zeros, by the name `ZEROED`.

        Return an empty mapping if `measure_zeroed` was false, or if there is no bank.
        """
        if not self.further:
            return {}
        x, *bank = (values[name] for name in self.features)
        return {ZEROED: self.head(x, *map(torch.zeros_like, bank))}


class ProbedCriterion(Criterion):
    """Trains a module without a bank, and a probe that reads the bank (our choice).

    The Simple Local Module, with its head (a `ClassifierHead`), trains the module. The probe reads
    banked features and the head's pooled vector, detached. The loss is the sum of the task's losses
    on both predictions; `forward` returns the head's prediction. With `measure_zeroed`, evaluations
    also measure the probe with a bank of zeros.
    """

    def __init__(
        self,
        network: CopiedNetwork,
        probe: nn.Module,
        features: tuple[str, ...],
        task: Task,
        measure_zeroed: bool,
    ) -> None:
        super().__init__(network, features, task)
        self.probe = probe
        self.further = (PROBE, ZEROED) if measure_zeroed else (PROBE,)

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sum of both predictions' mean losses, and the prediction without a bank."""
        head, vector, bank = self._read(values)
        prediction = head.fc(vector)
        probed = self.probe(vector.detach(), *bank)
        return self.task.loss(prediction, values) + self.task.loss(probed, values), prediction

    def predict_further(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the probe's prediction and, with `measure_zeroed`, that for a bank of zeros."""
        _, vector, bank = self._read(values)
        banks = (bank, [torch.zeros_like(b) for b in bank])
        return {name: self.probe(vector, *b) for name, b in zip(self.further, banks, strict=False)}

    def _read(
        self, values: Mapping[str, Tensor]
    ) -> tuple[ClassifierHead, Tensor, Sequence[Tensor]]:
        """Return the head, its pooled vectors [B, D], and the banked features."""
        x, *bank = (values[name] for name in self.features)
        network = self.head
        assert isinstance(network, CopiedNetwork)
        head = network.head
        assert isinstance(head, ClassifierHead)
        return head, head.pooled(network.units(x)), bank
