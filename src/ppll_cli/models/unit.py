"""What a model is: an ordered list of units that read and write named tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ppll_cli import seeding
from ppll_cli.errors import ConfigError
from ppll_cli.tasks.task import Task

IMAGE = "image"
"""The name under which every batch carries its images, float [B, C, H, W], normalised."""


@dataclass(frozen=True)
class ImageSpec:
    """Channels, height and width (pixels) of the images that a model is built for."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class ValueSpec:
    """Shape (without the batch dimension) and dtype of a named tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Unit:
    """The smallest piece of a model that a cut may separate from its neighbours.

    Attributes:
        name: Unique in the model; its parameters are saved as `name.parameter`.
        build: Makes the module, with fresh weights from torch's global generator. The module takes
            the tensors of `reads` in order and returns the tensor of `writes`, or a tuple of
            them. It must not change its inputs in place: others may read them.
        reads: Names of the tensors it takes.
        writes: Names of the tensors it makes; a name that exists is bound anew for later units.
    """

    name: str
    build: Callable[[], nn.Module]
    reads: tuple[str, ...] = ("x",)
    writes: tuple[str, ...] = ("x",)


class Model(Protocol):
    """What a model's class offers; its constructor takes the keys of its YAML file."""

    def units(self, image: ImageSpec, task: Task) -> Sequence[Unit]:
        """The units in order. The first reads `image`; the last writes the task's prediction.

        Raises:
            ConfigError: The options do not fit the images or the task.
        """
        ...


def build_unit(unit: Unit, seed: int) -> nn.Module:
    """A unit's module whose initial weights depend on (seed, unit name) alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.unit_weights(seed, unit.name))
        return unit.build()


def check_names(names: Sequence[str]) -> None:
    """Check that parameters of two units can never end up under the same key.

    Raises:
        ConfigError: Two units share a name, or one's name lies inside another's (`a` and `a.b`).
    """
    for index, name in enumerate(names):
        for other in names[:index]:
            if f"{name}.".startswith(f"{other}.") or other.startswith(f"{name}."):
                raise ConfigError(
                    "model", name, f"is a unit beside {other!r}", "give each a name of its own"
                )
