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

MOST_LAYERS = 4096
"""In a row of equal ones: far more than any network has."""


MOST_SIZE = 1 << 24
"""Of a layer in one direction: a million times what fits into memory in both."""


@dataclass(frozen=True)
class ImageSpec:
    """The images that a model is built for.

    Attributes:
        channels: Number of channels.
        height: In pixels.
        width: In pixels.
        mean: Of the pixels in [0, 1], one value or one a channel, that normalisation subtracts.
        std: What normalisation then divides by, one value or one a channel.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


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
        adapt: Like `build`, for an input of another shape: given that shape and the one that the
            unit makes in its place (both without the batch dimension), a module of the same kind.
            Auxiliary networks use it to copy a unit to where the features differ; what its copy
            makes may still have larger maps. Of a unit with several inputs, the last ones long
            skips, it makes a module that takes the first alone. None: the unit takes its own input
            only.
    """

    name: str
    build: Callable[[], nn.Module]
    reads: tuple[str, ...] = ("x",)
    writes: tuple[str, ...] = ("x",)
    adapt: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module] | None = None


class Model(Protocol):
    """What a model's class offers; its constructor takes the keys of its YAML file.

    It may also have an attribute or property `partitions`, a `Mapping[str, Sequence[str]]`: names
    of well-known ways to divide it into modules, and for each the units that start modules 2 to k.
    `local.cuts=NAME` takes them.
    """

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


def check_depth(key: str, depth: int, least: int = 1) -> None:
    """Refuse a number of equal layers that leaves none, or that would be built for ever.

    Raises:
        ConfigError: It is less than the least, or above `MOST_LAYERS`.
    """
    if depth < least:
        raise ConfigError(key, depth, f"must be at least {least}")
    if depth > MOST_LAYERS:
        raise ConfigError(key, depth, "are too many layers to build", f"use at most {MOST_LAYERS}")


def check_size(key: str, size: int) -> None:
    """Refuse a width, or another size of a layer, that leaves nothing or that no memory holds.

    Raises:
        ConfigError: It is less than 1, or above `MOST_SIZE`.
    """
    if size < 1:
        raise ConfigError(key, size, "must be at least 1")
    if size > MOST_SIZE:
        raise ConfigError(key, size, "is larger than any memory", f"use at most {MOST_SIZE}")


def check_names(names: Sequence[str]) -> None:
    """Check that parameters of two units can never end up under the same key.

    Raises:
        ConfigError: Two units share a name, or one's name lies inside another's (`a` and `a.b`).
    """
    taken: set[str] = set()
    inside: dict[str, str] = {}  # for each folder that names lie in, the first of them
    for name in names:
        parts = name.split(".")
        folders = [".".join(parts[:stop]) for stop in range(1, len(parts))]
        other = next((each for each in (*folders, name) if each in taken), inside.get(name))
        if other is not None:
            raise ConfigError(
                "model", name, f"is a unit beside {other!r}", "give each a name of its own"
            )
        taken.add(name)
        for folder in folders:
            inside.setdefault(folder, name)
