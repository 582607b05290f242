"""A chunk of a stage: its networks, and what is added up about it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ppll_cli.local.method import Criterion
from ppll_cli.models.unit import Unit
from ppll_cli.partition.layout import Chunk
from ppll_cli.runtime.averages import Average
from ppll_cli.runtime.optimizer import FusedOptimizer
from ppll_cli.transport.replicas import Replicas

log = logging.getLogger(__name__)


@dataclass
class Sums:
    """Losses and metrics of some batches, on the device: reading them would stop the host.

    Attributes:
        loss: Sum of the losses of all samples, a scalar.
        samples: How many samples; over several replicas a scalar on the device.
        measures: What the task measured, batch after batch.
    """

    loss: Tensor | float = 0.0
    samples: int | Tensor = 0
    measures: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, samples: int, measures: Tensor) -> None:
        """Add a batch, given its mean loss."""
        self.loss = self.loss + loss.detach().double() * samples
        self.samples += samples
        self.measures.append(measures)

    def over(self, replicas: Replicas, device: torch.device) -> "Sums":
        """The sums over all replicas. All of them have to call this."""
        numbers = torch.zeros(2, dtype=torch.float64, device=device)
        numbers[0], numbers[1] = self.loss, self.samples
        replicas.add(numbers).wait()
        nothing = numbers.new_zeros(0, 0)
        rows = replicas.gather(torch.cat(self.measures) if self.measures else nothing)
        return Sums(numbers[0], numbers[1], [rows])


@dataclass
class StageChunk:
    """A chunk and its networks.

    The lists of parameters are made once, when they are first asked for, because to walk the
    networks takes longer than many a kernel. Networks are complete by then and keep their
    parameters.

    Attributes:
        place: Which units, of which module.
        units: The units and their networks, in order.
        exports: Units that make values for later modules' losses, and their networks.
        criterion: The loss at a module's end; its parameters are the auxiliary network.
        optimizer: Steps all parameters; None where there are none.
        sums: What was measured and not yet reported, in training and by split in evaluation.
        nonfinite: Whether a loss of the batch in hand is known to be no finite number.
        skipped: Under `optim.nonfinite=skip` on CUDA: for each step since the last report a scalar
            on the device, 1 where the step was skipped.
        average: Averages the gradients over the replicas, where there are several.
    """

    place: Chunk
    units: list[tuple[Unit, nn.Module]]
    exports: list[tuple[Unit, nn.Module]]
    criterion: Criterion | None
    optimizer: FusedOptimizer | None = None
    sums: dict[str, Sums] = field(default_factory=dict)
    nonfinite: bool = False
    skipped: dict[int, Tensor] = field(default_factory=dict)
    average: Average | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """The units' and exports' networks, and the criterion."""
        criterion = [] if self.criterion is None else [self.criterion]
        return [network for _, network in (*self.units, *self.exports)] + criterion

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the units and of the auxiliary network; one of two networks comes twice."""
        return [p for network in self.networks for p in network.parameters()]

    @cached_property
    def unit_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit."""
        return [list(network.parameters()) for _, network in self.units]

    @property
    def learnt(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit, and of the auxiliary network. Exports get no gradients."""
        criterion = [] if self.criterion is None else [self.criterion]
        networks = [network for _, network in self.units] + criterion
        return [list(network.parameters()) for network in networks]

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers of all networks, such as BatchNorm's running statistics."""
        return [buffer for network in self.networks for buffer in network.buffers()]

    @cached_property
    def auxiliary(self) -> bool:
        """Whether there is an auxiliary network."""
        return self.criterion is not None and any(True for _ in self.criterion.parameters())

    def add(self, split: str, loss: Tensor, samples: int, measures: Tensor) -> None:
        """Add what was measured on a batch."""
        self.sums.setdefault(split, Sums()).add(loss, samples, measures)


def warn_of_skipped(module: int, steps: Sequence[int], flags: Tensor) -> None:
    """Log which of a module's steps were skipped; their flags, 1 where one was, are on the CPU."""
    for step, flag in zip(steps, flags.tolist(), strict=True):
        if flag:
            log.warning("step %d of module %d is skipped", step, module)
