"""Chunks: which units are computed in one go, on which stage, and which modules they make."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Self

from ppll_cli.errors import ConfigError
from ppll_cli.pipeline.solver import balance


@dataclass(frozen=True)
class Chunk:
    """A run of units that a stage computes in one go.

    Attributes:
        units: The numbers of the units.
        stage: The stage that holds it.
        module: The module that it belongs to; under back-propagation the model is one module.
        ends_module: Whether it is the last chunk of its module, which has the loss.
    """

    units: range
    stage: int
    module: int
    ends_module: bool


@dataclass(frozen=True)
class Layout:
    """The chunks of a model in order, each on its stage."""

    chunks: tuple[Chunk, ...]

    @classmethod
    def contiguous(cls, modules: Sequence[range], stages: Sequence[range]) -> Self:
        """Each stage holds a run of units; the parts of modules that lie in it are its chunks.

        Args:
            modules: The units of each module.
            stages: The units of each stage.
        """
        return cls(
            tuple(
                Chunk(range(start, stop), stage, number, stop == module.stop)
                for stage, units in enumerate(stages)
                for number, module in enumerate(modules)
                if (start := max(units.start, module.start))
                < (stop := min(units.stop, module.stop))
            )
        )

    @classmethod
    def spread(cls, runs: Sequence[range], stages: Sequence[int]) -> Self:
        """Each run of units is a chunk on the stage that is given for it; all are one module."""
        last = len(runs) - 1
        found = enumerate(zip(runs, stages, strict=True))
        return cls(tuple(Chunk(run, stage, 0, number == last) for number, (run, stage) in found))

    @cached_property
    def stages(self) -> int:
        """How many stages there are."""
        return 1 + max(chunk.stage for chunk in self.chunks)

    @cached_property
    def modules(self) -> tuple[range, ...]:
        """The units of each module."""
        groups = (list(g) for _, g in groupby(self.chunks, key=lambda chunk: chunk.module))
        return tuple(range(g[0].units.start, g[-1].units.stop) for g in groups)

    def of(self, stage: int) -> tuple[int, ...]:
        """The numbers of a stage's chunks."""
        return tuple(n for n, chunk in enumerate(self.chunks) if chunk.stage == stage)

    def units(self, stage: int) -> list[int]:
        """The numbers of a stage's units."""
        return [unit for chunk in self.chunks if chunk.stage == stage for unit in chunk.units]

    def runs(self, stage: int) -> list[int]:
        """How many units each run of a stage's neighbouring units has."""
        units = self.units(stage)
        starts = [n for n, unit in enumerate(units) if not n or units[n - 1] != unit - 1]
        return [end - start for start, end in pairwise([*starts, len(units)])]

    def modules_of(self, stage: int) -> list[int]:
        """The numbers of the modules of which a stage has a part, each once."""
        found = (chunk.module for chunk in self.chunks if chunk.stage == stage)
        return list(dict.fromkeys(found))

    def holder(self, unit: int) -> int:
        """The number of the chunk that holds a unit."""
        return next(n for n, chunk in enumerate(self.chunks) if unit in chunk.units)

    def cuts(self) -> list[int]:
        """The first unit of each chunk that is on another stage than the chunk before."""
        pairs = pairwise(self.chunks)
        return [after.units.start for before, after in pairs if before.stage != after.stage]

    def crosses(self, chunk: int) -> bool:
        """Whether a chunk's inputs come from another stage."""
        return 0 < chunk < len(self.chunks) and (
            self.chunks[chunk - 1].stage != self.chunks[chunk].stage
        )


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
