"""The interface of models: an ordered list of units that read and write named tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ppll_cli import seeding
from ppll_cli.errors import ConfigError
from ppll_cli.tasks.task import Task

IMAGE = "image"
"""Name of a batch's images, float [B, C, H, W], normalised."""

MOST_LAYERS = 4096
"""Most equal layers in a row, far more than any network has."""


MOST_SIZE = 1 << 24
"""Largest size of a layer in one dimension; a square layer of this size fits into no memory."""


@dataclass(frozen=True)
class ImageSpec:
    """The images that a model is built for.

    Attributes:
        channels: Number of channels.
        height: Height in pixels.
        width: Width in pixels.
        mean: Mean that normalisation subtracts from pixels in [0, 1], one value or one per channel.
        std: Number by which normalisation then divides, one value or one per channel.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Unit:
    """The smallest piece of a model: cuts between modules or chunks lie between units.

    Attributes:
        name: Name, unique in the model. Parameters are saved as `name.parameter`.
        build: Makes the module, with fresh weights from torch's global generator. The module takes
            the tensors of `reads` in order, and returns the tensor of `writes` or a tuple of
            several. It must not change its inputs in place, because others may read them.
        reads: Names of the tensors that the module takes.
        writes: Names of the tensors that it returns. If a name exists already, later units read the
            new tensor.
        adapt: Makes a module of the same kind for an input of another shape; None if the unit takes
            only its own input. Its arguments are that shape and the shape of the unit's own output,
            both without the batch dimension. Auxiliary networks use it to copy a unit where the
            features differ; the copy may return larger maps than the unit. If the unit has several
            inputs, of which all but the first are long skips, the copy takes the first alone.
    """

    name: str
    build: Callable[[], nn.Module]
    reads: tuple[str, ...] = ("x",)
    writes: tuple[str, ...] = ("x",)
    adapt: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module] | None = None


class Model(Protocol):
    """The interface of a model's class; its constructor takes the keys of the model's YAML file.

    A model may also have an attribute or property `partitions`, a `Mapping[str, Sequence[str]]`. It
    gives well-known partitions into modules: by name, the first units of modules 2 to k.
    `local.cuts=NAME` chooses one.
    """

    def units(self, image: ImageSpec, task: Task) -> Sequence[Unit]:
        """Return the units in order. The first reads `image`; the last writes the prediction.

        Raises:
            ConfigError: The options do not fit the images or the task.
        """
        ...


def build_unit(unit: Unit, seed: int) -> nn.Module:
    """Build a unit's module, whose initial weights depend only on the seed and the unit's name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.unit_weights(seed, unit.name))
        return unit.build()


def check_depth(key: str, depth: int, least: int = 1) -> None:
    """Check that a number of equal layers is within limits.

    Raises:
        ConfigError: It is less than `least`, or above `MOST_LAYERS`.
    """
    if depth < least:
        raise ConfigError(key, depth, f"must be at least {least}")
    if depth > MOST_LAYERS:
        raise ConfigError(key, depth, "are too many layers to build", f"use at most {MOST_LAYERS}")


def check_size(key: str, size: int) -> None:
    """Check that a width, or another size of a layer, is within limits.

    Raises:
        ConfigError: It is less than 1, or above `MOST_SIZE`.
    """
    if size < 1:
        raise ConfigError(key, size, "must be at least 1")
    if size > MOST_SIZE:
        raise ConfigError(key, size, "is larger than any memory", f"use at most {MOST_SIZE}")


def check_names(names: Sequence[str]) -> None:
    """Check that parameters of two units can never be saved under equal names.

    Raises:
        ConfigError: Two units share a name, or one name is a prefix of another (`a` and `a.b`).
    """
    taken: set[str] = set()
    inside: dict[str, str] = {}  # for each prefix of names, the first name with it
    for name in names:
        parts = name.split(".")
        folders = [".".join(parts[:stop]) for stop in range(1, len(parts))]
        other = next((each for each in (*folders, name) if each in taken), inside.get(name))
        if other is not None:
            raise ConfigError(
                "model",
                name,
                f"clashes with the unit name {other!r}",
                "give each unit a name of its own",
            )
        taken.add(name)
        for folder in folders:
            inside.setdefault(folder, name)
