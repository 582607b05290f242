"""What is added up about a chunk between two reports."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppll_cli.transport.replicas import Replicas


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
