"""A chunk of a stage: its networks, and what is added up about it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ppll_cli.local.method import Criterion
from ppll_cli.models.unit import Unit
from ppll_cli.partition.layout import Chunk
from ppll_cli.runtime.averages import Average
from ppll_cli.transport.replicas import Replicas


@dataclass
class Sums:
    """Losses and metrics of some batches, on the device: reading them would stop the host.

    Attributes:
        loss: Sum of the losses of all samples, a scalar.
        samples: How many samples.
        measures: What the task measured, batch after batch.
    """

    loss: Tensor | float = 0.0
    samples: int = 0
    measures: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, samples: int, measures: Tensor) -> None:
        """Add a batch, given its mean loss."""
        self.loss = self.loss + loss.detach().double() * samples
        self.samples += samples
        self.measures.append(measures)

    def over(self, replicas: Replicas, device: torch.device) -> "Sums":
        """The same of all replicas together, which all have to ask for it."""
        numbers = torch.zeros(2, dtype=torch.float64, device=device)
        numbers[0], numbers[1] = self.loss, self.samples
        replicas.add(numbers).wait()
        nothing = numbers.new_zeros(0, 0)
        rows = replicas.gather(torch.cat(self.measures) if self.measures else nothing)
        return Sums(numbers[0], int(numbers[1]), [rows])


@dataclass
class StageChunk:
    """A chunk and its networks.

    Attributes:
        place: Which units, of which module.
        units: The units and their networks, in order.
        exports: Units that make values for later modules' losses, likewise.
        criterion: The loss at a module's end; its parameters are the auxiliary network.
        optimizer: Of all parameters; none where there are none.
        sums: What was measured in training, and by split in evaluation, and not yet reported.
        nonfinite: Whether a loss of the batch in hand is no finite number, as far as one looks.
        average: Of the gradients over all replicas, where there are several.
    """

    place: Chunk
    units: list[tuple[Unit, nn.Module]]
    exports: list[tuple[Unit, nn.Module]]
    criterion: Criterion | None
    optimizer: torch.optim.Optimizer | None = None
    sums: dict[str, Sums] = field(default_factory=dict)
    nonfinite: bool = False
    average: Average | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """The units' and exports' networks, and the criterion."""
        criterion = [] if self.criterion is None else [self.criterion]
        return [network for _, network in (*self.units, *self.exports)] + criterion

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of the units, and of the auxiliary network."""
        return [p for network in self.networks for p in network.parameters()]

    @property
    def learnt(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit, and of the auxiliary network. Exports get no gradients."""
        criterion = [] if self.criterion is None else [self.criterion]
        networks = [network for _, network in self.units] + criterion
        return [list(network.parameters()) for network in networks]

    @property
    def buffers(self) -> list[Tensor]:
        """What is neither learnt nor forgotten, as BatchNorm's running means."""
        return [buffer for network in self.networks for buffer in network.buffers()]

    @property
    def auxiliary(self) -> bool:
        """Whether there is an auxiliary network."""
        return self.criterion is not None and any(True for _ in self.criterion.parameters())

    def add(self, split: str, loss: Tensor, samples: int, measures: Tensor) -> None:
        """Add what was measured on a batch."""
        self.sums.setdefault(split, Sums()).add(loss, samples, measures)
