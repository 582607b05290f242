"""Defines the interface of models: an ordered list of units that read and write named tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor, nn

from ppll_cli import seeding
from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.images import IMAGE as IMAGE
from ppll_cli.leaves.images import ImageSpec as ImageSpec
from ppll_cli.leaves.random_states import seeded
from ppll_cli.leaves.values import InputSpec
from ppll_cli.tasks.task import Task


@dataclass(frozen=True)
class Unit:
    """The smallest piece of a model. Models are cut into modules and chunks only between units.

    Attributes:
        name: Name, unique in the model. Parameters are saved as `name.parameter`.
        build: Builds the network, with new random weights. It may draw them with the global random
            generators of torch, NumPy and Python, which the program seeds. The network takes the
            tensors of `reads` in order. It returns the tensor of `writes`, or a tuple if `writes`
            has several names. It must not change its inputs in place: other units may read them.
        reads: Names of the tensors that the network takes.
        writes: Names of the tensors that the network returns. If a tensor with this name exists
            already, later units read the new tensor.
        adapt: Builds a network of the same kind for an input of another shape; None if this is not
            possible. It is called as `adapt(shape of the input, shape of this unit's output)`,
            without batch dimensions. The output of the new network may be higher and wider than
            this unit's. If this unit also reads long skips (outputs of much earlier units), the new
            network takes only the first input.
    """

    name: str
    build: Callable[[], nn.Module]
    reads: tuple[str, ...] = ("x",)
    writes: tuple[str, ...] = ("x",)
    adapt: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module] | None = None

    def inputs(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tensors that the network takes, in order; `values` has tensors by name."""
        return [values[name] for name in self.reads]

    def written(self, returned: object) -> dict[str, Tensor]:
        """Return the tensors that the network has returned, by name, in the order of `writes`.

        Raises:
            TypeError: The network did not return exactly one tensor for each name.
        """
        values = returned if isinstance(returned, tuple) else (returned,)
        tensors = {n: t for n, t in zip(self.writes, values, strict=False) if isinstance(t, Tensor)}
        if len(tensors) != len(values) or len(tensors) != len(self.writes):
            kinds = ", ".join(type(value).__name__ for value in values) or "nothing"
            wanted = f"a tensor for each name that it writes ({', '.join(self.writes)})"
            raise TypeError(f"unit {self.name} returned {kinds} instead of {wanted}")
        return tensors


class Model(Protocol):
    """The interface of a model's class; its constructor takes the keys of the model's YAML file.

    A model may also have an attribute or property `partitions`, a `Mapping[str, Sequence[str]]` of
    well-known partitions into modules. It maps the name of a partition to the first unit of each
    module except module 0. `local.cuts=NAME` chooses a partition.
    """

    def units(self, image: Any, task: Task) -> Sequence[Unit]:
        """Return the units in order. The last unit writes the prediction.

        Args:
            image: What the data set's `image_spec` returned. If it is an `ImageSpec`, the first
                unit reads the tensor `image`. Any other `InputSpec` names the tensors that units
                read.
            task: The task that the model learns.

        Raises:
            ConfigError: The options do not fit the data or the task.
        """


def make_seeded(group: str, config: Mapping[str, Any], seed: int) -> Any:
    """Make a model (`group` is "model") or a local method ("local") from its configuration.

    Random numbers of the constructor depend only on the seed and the group.
    """
    with seeded(seeding.constructor(seed, group)):
        return make(group, config)


@contextmanager
def seeded_model(config: Mapping[str, Any], seed: int) -> Iterator[Model]:
    """Make a model. Random numbers in its constructor and the `with` body depend only on `seed`."""
    with seeded(seeding.constructor(seed, "model")):
        yield make("model", config)


def units_seeded(
    config: Mapping[str, Any], input_spec: InputSpec, task: Task, seed: int
) -> tuple[Unit, ...]:
    """Make a model, and return its units. All random numbers for this depend only on `seed`."""
    with seeded_model(config, seed) as model:
        return tuple(model.units(input_spec, task))


def build_unit(unit: Unit, seed: int) -> nn.Module:
    """Build a unit's network. Its initial weights depend only on the seed and the unit's name."""
    with seeded(seeding.unit_weights(seed, unit.name)):
        return unit.build()


def check_images(input_spec: object, model: str) -> None:
    """Refuse data without images for `model`, the name of a model that reads images.

    Raises:
        ConfigError: `input_spec` is not an `ImageSpec`.
    """
    if not isinstance(input_spec, ImageSpec):
        remedy = "choose a model that reads the tensors of this data set"
        raise ConfigError("model", model, "reads images, but the data set has none", remedy)


def check_names(names: Sequence[str]) -> None:
    """Refuse names of units that no submodule can have, such as `train`, a method of nn.Module.

    Also refuse equal names, and a name that is a prefix of another (`a` and `a.b`), because then
    parameters of two units could have the same name in a file.

    Raises:
        ConfigError: A name is refused.
    """
    attributes = {*dir(nn.Module())}
    for name in names:
        if wrong := [part for part in name.split(".") if not part or part in attributes]:
            why = f"{wrong[0]!r} is an attribute of every nn.Module"
            why = why if wrong[0] else "a part of it is empty"
            raise ConfigError("model", name, f"cannot be a unit name: {why}", "use another name")
    # If names are sorted by their parts, a prefix comes right before the names that begin with it.
    ordered = sorted(enumerate(names), key=lambda numbered: numbered[1].split("."))
    for one, other in pairwise(ordered):
        if f"{other[1]}.".startswith(f"{one[1]}."):
            (_, first), (_, second) = sorted((one, other))
            problem = f"clashes with the unit name {first!r}"
            raise ConfigError("model", second, problem, "give each unit a name of its own")
