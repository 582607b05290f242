"""A model that sends tensors of integers."""

from functools import partial

import torch
from torch import Tensor, nn

from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import classes_of
from ppll_cli.tasks.task import Task


class Indices:
    """A model that sends integers, and the bias of its first unit, over several units."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return five units. Two of them read what `first` writes."""
        pixels = image.channels * image.height * image.width
        return [
            Unit("first", partial(_Indexing, pixels), ("image",), ("x", "index", "bias")),
            Unit("second", partial(nn.Linear, 8, 8)),
            Unit("third", _Indexed, ("x", "index", "bias")),
            Unit("fourth", _Indexed, ("x", "index", "bias")),
            Unit("last", partial(nn.Linear, 8, classes_of(task, "indices"))),
        ]


class _Indexing(nn.Module):
    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, 8)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.tanh(self.linear(image.flatten(1)))
        return x, x.argmax(1), self.linear.bias.expand(len(x), -1)


class _Indexed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 8)

    def forward(self, x: Tensor, index: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = torch.tanh(x + self.embedding(index) + bias)
        return out
