"""Chunks: consecutive units of a model, each chunk with its stage and its module."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Self

from ppll_cli.errors import ConfigError


@dataclass(frozen=True)
class Chunk:
    """Consecutive units that a stage computes together.

    Attributes:
        units: Indices of the units in the model.
        stage: Number of the stage that holds the chunk.
        module: Number of the chunk's module. Under back-propagation, the whole model is one module.
        ends_module: Whether the chunk is the last one of its module; then it computes the loss.
    """

    units: range
    stage: int
    module: int
    ends_module: bool


@dataclass(frozen=True)
class Layout:
    """The chunks of a model, in the model's order."""

    chunks: tuple[Chunk, ...]

    @classmethod
    def contiguous(cls, modules: Sequence[range], stages: Sequence[range]) -> Self:
        """Return a layout in which each stage has consecutive units.

        `modules` and `stages` have the unit indices of each module and of each stage. A module
        whose units are on several stages is cut into one chunk per stage.
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
        """Return a layout in which the whole model is one module.

        `runs` has the unit indices of each chunk, and `stages` the stage of each chunk.
        """
        last = len(runs) - 1
        found = enumerate(zip(runs, stages, strict=True))
        return cls(tuple(Chunk(run, stage, 0, number == last) for number, (run, stage) in found))

    @cached_property
    def stages(self) -> int:
        """Number of stages."""
        return 1 + max(chunk.stage for chunk in self.chunks)

    @cached_property
    def modules(self) -> tuple[range, ...]:
        """The indices of the units of each module."""
        groups = (list(g) for _, g in groupby(self.chunks, key=lambda chunk: chunk.module))
        return tuple(range(g[0].units.start, g[-1].units.stop) for g in groups)

    def of(self, stage: int) -> tuple[int, ...]:
        """Return the numbers of a stage's chunks."""
        return tuple(n for n, chunk in enumerate(self.chunks) if chunk.stage == stage)

    def units(self, stage: int) -> list[int]:
        """Return the indices of a stage's units."""
        return [unit for chunk in self.chunks if chunk.stage == stage for unit in chunk.units]

    def runs(self, stage: int) -> list[list[int]]:
        """Return the indices of a stage's units, in groups of consecutive units."""
        units = self.units(stage)
        starts = [n for n, unit in enumerate(units) if not n or units[n - 1] != unit - 1]
        return [units[start:end] for start, end in pairwise([*starts, len(units)])]

    def modules_of(self, stage: int) -> list[int]:
        """Return the numbers of the modules that are at least partly on a stage."""
        found = (chunk.module for chunk in self.chunks if chunk.stage == stage)
        return list(dict.fromkeys(found))

    def holder(self, unit: int) -> int:
        """Return the number of the chunk that holds a unit."""
        return next(n for n, chunk in enumerate(self.chunks) if unit in chunk.units)

    def cuts(self) -> list[int]:
        """Return the index of the first unit after each change from one stage to another."""
        pairs = pairwise(self.chunks)
        return [after.units.start for before, after in pairs if before.stage != after.stage]

    def crosses(self, chunk: int) -> bool:
        """Return whether a chunk's inputs come from another stage."""
        return 0 < chunk < len(self.chunks) and (
            self.chunks[chunk - 1].stage != self.chunks[chunk].stage
        )


def cut_at(names: Sequence[str], starts: Sequence[str], key: str) -> list[range]:
    """Cut a model's units into groups of consecutive units; return the indices of each group.

    Args:
        names: The names of all units, in the model's order.
        starts: The names of the first units of all groups but the first.
        key: The configuration key for which the user gave `starts`, for error messages.

    Raises:
        ConfigError: A name in `starts` is unknown, out of order, given twice, or that of the first
            unit.
    """
    given = ",".join(starts)
    for name in starts:
        if name not in names[1:]:
            possible = ", ".join(names[1:])
            raise ConfigError(key, f"[{given}]", f"no cut can be at {name!r}", f"use {possible}")
    indices = [names.index(name) for name in starts]
    if any(here >= following for here, following in pairwise(indices)):
        raise ConfigError(
            key,
            f"[{given}]",
            "the units must be in the model's order, each once",
            "reorder them, and name none twice",
        )
    return [range(a, b) for a, b in pairwise([0, *indices, len(names)])]
