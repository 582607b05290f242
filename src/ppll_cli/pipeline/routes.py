"""Routes: which named tensors travel from each chunk to the next, and which weights travel back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ppll_cli.pipeline.layout import Layout


class Access(Protocol):
    """Anything that reads and writes named tensors: a unit, or the loss at a module's end."""

    @property
    def reads(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def writes(self) -> Sequence[str]: ...  # noqa: D102


@dataclass(frozen=True)
class Route:
    """The tensors that travel from a chunk to the next one.

    Attributes:
        names: Names of the tensors, sorted.
        gradients: The names for which a gradient travels back, sorted.
    """

    names: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Watch:
    """A later unit whose weights a module's loss reads, a fixed number of batches old.

    The forward of batch b reads the weights as they were after the step of batch b - lag, or the
    initial weights if b < lag. So what is read depends neither on the schedule nor on the stages
    of the two chunks.

    Attributes:
        unit: Index of the unit in the model; it belongs to a later module.
        lag: Age of the weights in batches, 1 or more.
    """

    unit: int
    lag: int = 2

    @property
    def ahead(self) -> int:
        """How many batches before their use the weights are sent, at most 2.

        With 2, neighbouring stages hardly wait for each other; more would only cost slots. If `lag`
        is larger, the sender keeps the weights until then.
        """
        return min(self.lag, 2)


@dataclass(frozen=True)
class Routes:
    """The chunks of a model, and the routes between them.

    Attributes:
        layout: The chunks and their stages.
        into: For each chunk, the route that leads to it. The route to chunk 0 has no names.
        reads: For each chunk, the names of its inputs that its units or its loss read.
        makes: For each chunk, the names that its units write, or what follows them at a module's
            end.
        watches: The watch of each chunk whose loss watches a unit, by the number of the chunk.
    """

    layout: Layout
    into: tuple[Route, ...]
    reads: tuple[frozenset[str], ...]
    makes: tuple[frozenset[str], ...]
    watches: Mapping[int, Watch] = field(default_factory=dict)

    def watched(self, watcher: int) -> int:
        """Return the number of the chunk that holds the unit which `watcher` watches."""
        return self.layout.holder(self.watches[watcher].unit)

    def out_of(self, chunk: int) -> Route:
        """Return the route from a chunk to the next one; after the last chunk it has no names."""
        return self.into[chunk + 1] if chunk + 1 < len(self.into) else Route()

    def passing(self, chunk: int) -> frozenset[str]:
        """Return the names that a chunk passes on unchanged."""
        return frozenset(self.out_of(chunk).names) - self.makes[chunk]


def find_routes(
    layout: Layout,
    units: Sequence[Access],
    ends: Mapping[int, Sequence[Access]],
    watches: Mapping[int, Watch] | None = None,
) -> Routes:
    """Find the tensors that cross each cut, which are made before it and read behind it.

    A gradient travels back for each tensor that an earlier unit of the same module makes.

    Args:
        layout: The chunks.
        units: The model's units.
        ends: By the index of each module's last unit, what follows that unit, in order: units that
            make values for later losses, and the module's own loss.
        watches: By the index of a module's last unit, what the module's loss watches; modules
            that watch nothing are left out.
    """
    into, reads, makes = [], [], []
    live: set[str] = set()
    for chunk in reversed(layout.chunks):
        wanted: set[str] = set()
        made: set[str] = set()
        for index in reversed(chunk.units):
            for access in (*reversed(ends.get(index, ())), units[index]):
                wanted = wanted - set(access.writes) | set(access.reads)
                live = live - set(access.writes) | set(access.reads)
                made |= set(access.writes)
        before = range(layout.modules[chunk.module].start, chunk.units.start)
        trained = {name for index in before for name in units[index].writes}
        names = tuple(sorted(live)) if chunk.units.start else ()
        into.append(Route(names, tuple(name for name in names if name in trained)))
        reads.append(frozenset(wanted))
        makes.append(frozenset(made))
    watching = {layout.holder(index): watch for index, watch in (watches or {}).items()}
    return Routes(layout, tuple(into[::-1]), tuple(reads[::-1]), tuple(makes[::-1]), watching)
