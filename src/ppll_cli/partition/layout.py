"""Which units make a module, which modules make a stage, and what crosses the cuts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ppll_cli.errors import ConfigError
from ppll_cli.models.unit import Unit
from ppll_cli.partition.solver import balance
from ppll_cli.values import ValueSpec


@dataclass(frozen=True)
class Chunk:
    """A run of units that a stage executes as one, and the module they belong to."""

    module: int
    units: range
    ends_module: bool


@dataclass(frozen=True)
class Layout:
    """Contiguous groups of units, by their index in the model.

    Attributes:
        modules: The units of each module. Under back-propagation the model is one module.
        stages: The units of each stage.
    """

    modules: tuple[range, ...]
    stages: tuple[range, ...]

    def chunks(self, stage: int) -> list[Chunk]:
        """What the stage executes: the part of each module that lies in it."""
        units = self.stages[stage]
        chunks = []
        for index, module in enumerate(self.modules):
            start, stop = max(units.start, module.start), min(units.stop, module.stop)
            if start < stop:
                chunks.append(Chunk(index, range(start, stop), stop == module.stop))
        return chunks

    def first_chunk(self, stage: int) -> int:
        """The number of a stage's first chunk, where chunks are counted through the whole model."""
        return sum(len(self.chunks(earlier)) for earlier in range(stage))


@dataclass(frozen=True)
class Edge:
    """What crosses the cut between a stage and the next one.

    Attributes:
        names: Names of the tensors that travel downstream, sorted.
        specs: What each of them is like.
        gradients: Those of them whose gradients travel back, sorted.
    """

    names: tuple[str, ...]
    specs: tuple[ValueSpec, ...]
    gradients: tuple[str, ...]


class Access(Protocol):
    """What reads and writes named tensors: a unit, or the loss at a module's end."""

    @property
    def reads(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def writes(self) -> Sequence[str]: ...  # noqa: D102


def cut_at(names: Sequence[str], starts: Sequence[str], key: str) -> list[range]:
    """Groups of units that begin at the named units, the first group at the first unit.

    Raises:
        ConfigError: A name is unknown, given twice or out of order; `key` is named as the cause.
    """
    given = ",".join(starts)
    for name in starts:
        if name not in names[1:]:
            possible = ", ".join(names[1:])
            raise ConfigError(key, f"[{given}]", f"no cut can be at {name!r}", f"use {possible}")
    indices = [names.index(name) for name in starts]
    if any(here >= following for here, following in pairwise(indices)):
        raise ConfigError(
            key, f"[{given}]", "the units must be in the model's order, each once", "reorder them"
        )
    return [range(a, b) for a, b in pairwise([0, *indices, len(names)])]


def group(
    atoms: Sequence[range],
    costs: Sequence[float],
    stages: int,
    sent: Sequence[float] = (),
) -> list[range]:
    """Group atoms (units, or fixed modules) into stages, so that the dearest stage is cheapest.

    Args:
        atoms: The units of each atom.
        costs: The cost of each atom.
        stages: How many stages.
        sent: What a stage that begins with an atom costs the stage before it, for each atom;
            empty where that costs nothing.

    Returns:
        The units of each stage.
    """
    parts = balance(costs, stages, sent)
    return [range(atoms[part.start].start, atoms[part.stop - 1].stop) for part in parts]


def edges(
    units: Sequence[Unit],
    stages: Sequence[range],
    ends: Mapping[int, Sequence[Access]],
    specs: Sequence[Mapping[str, ValueSpec]],
    backward: bool,
) -> list[Edge]:
    """What must cross each cut: all that is read behind it and made before it.

    Args:
        units: The model's units.
        stages: The units of each stage.
        ends: For the last unit of each module, what follows it there, in order: units that make
            values for later losses, and the module's own loss.
        specs: For each unit, what is there before it.
        backward: Whether gradients travel back for what units have made.

    Returns:
        One edge for each cut between stages.
    """
    live: set[str] = set()
    live_before: dict[int, set[str]] = {}
    for index in range(len(units) - 1, -1, -1):
        for access in (*reversed(ends.get(index, ())), units[index]):
            live -= set(access.writes)
            live |= set(access.reads)
        live_before[index] = set(live)
    result = []
    for stage in stages[1:]:
        made = {name for unit in units[: stage.start] for name in unit.writes}
        names = tuple(sorted(live_before[stage.start]))
        here = tuple(specs[stage.start][name] for name in names)
        gradients = tuple(name for name in names if name in made) if backward else ()
        result.append(Edge(names, here, gradients))
    return result
