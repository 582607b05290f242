"""A model and a local method of a user that draw random numbers, in evaluation too."""

from functools import partial

import torch
from torch import Tensor, nn

from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import classes_of
from ppll_cli.tasks.task import Task


class Noisy:
    """A model whose units add noise."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return five units."""
        pixels = image.channels * image.height * image.width
        widths = [pixels, 8, 8, 8, 8, classes_of(task, "noisy")]
        names = ("first", "second", "third", "fourth", "last")
        return [
            Unit(name, partial(_layer, *widths[n : n + 2]), ("x",) if n else ("image",))
            for n, name in enumerate(names)
        ]


class Projected:
    """A model with random numbers that are in no file: its constructor and `units` draw them."""

    def __init__(self) -> None:
        self.matrix = torch.randn(64, 8)

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return three units. The first one projects 64 pixels."""
        project = partial(_Project, self.matrix, torch.randn(8))
        return [
            Unit("first", project, ("image",)),
            Unit("second", partial(nn.Linear, 8, 8)),
            Unit("last", partial(nn.Linear, 8, classes_of(task, "projected"))),
        ]


class NoisyHeads(LocalMethod):
    """The task's smallest head, on features with noise."""

    def criterion(self, site: Site) -> Criterion:
        """Return the loss of a module."""
        head = nn.Sequential(_Noise(), site.task.smallest_head(site.spec.shape))
        return Criterion(head, (site.feature,), site.task)


def _layer(width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, outputs), _Noise())


class _Project(nn.Module):
    def __init__(self, matrix: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, bias

    def forward(self, image: Tensor) -> Tensor:
        matrix, bias = self.matrix.to(image.device), self.bias.to(image.device)
        return image.flatten(1) @ matrix + bias


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)
