"""Gradients averaged over the replicas of a stage.

A chunk's gradients are laid into one flat buffer, which is summed over the replicas by one
all-reduce while the stage goes on. Each replica's loss is weighted by its share of the batch, so
the sum of the gradients is that of the whole batch, as with micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.distributed import Work

from ppll_cli.transport.replicas import Replicas


@dataclass(frozen=True)
class _Buffer:
    """Gradients of parameters of one type, on their way.

    Behind them are numbers: for each parameter how many replicas have a gradient of it, and how
    many replicas saw a loss that is no finite number.
    """

    parameters: Sequence[nn.Parameter]
    values: Tensor
    work: Work

    @property
    def _notes(self) -> Tensor:
        return self.values[-len(self.parameters) - 1 :]

    def unpack(self) -> None:
        """Make them the parameters' gradients."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(self.values[: sum(sizes)], sizes)
        missing = [p for p in self.parameters if p.grad is None]
        # A parameter that no replica has used stays without a gradient; to look is to wait for a
        # device, so one looks only where it matters.
        counts = self._notes[:-1].tolist() if missing else [1.0] * len(sizes)
        for parameter, part, count in zip(self.parameters, parts, counts, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view_as(parameter))

    @property
    def nonfinite(self) -> bool:
        """Whether any replica saw a loss that is no finite number."""
        return bool(self._notes[-1] > 0)


class Average:
    """The average of some parameters' gradients, which is on its way from the beginning on.

    Args:
        replicas: Over which; in each of them parameters and their order are the same.
        parameters: Whose gradients.
        nonfinite: Whether this replica saw a loss that is no finite number.
    """

    def __init__(
        self, replicas: Replicas, parameters: Sequence[nn.Parameter], nonfinite: bool
    ) -> None:
        self._buffers = []
        ordered = sorted(parameters, key=lambda parameter: str(parameter.dtype))
        for _, group in groupby(ordered, key=lambda parameter: parameter.dtype):
            same = list(group)
            notes = [float(p.grad is not None) for p in same]
            pieces = [_gradient(p).reshape(-1) for p in same]
            values = torch.cat([*pieces, pieces[0].new_tensor([*notes, float(nonfinite)])])
            self._buffers.append(_Buffer(same, values, replicas.add(values)))

    def finish(self) -> None:
        """Wait for it, and have it in the parameters' gradients."""
        for buffer in self._buffers:
            buffer.work.wait()
            buffer.unpack()

    @property
    def nonfinite(self) -> bool:
        """Whether any replica saw a loss that is no finite number; after `finish`."""
        return any(buffer.nonfinite for buffer in self._buffers)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
