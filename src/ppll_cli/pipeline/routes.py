"""Routes: which named tensors travel from each chunk to the next one, and which weights back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ppll_cli.pipeline.layout import Layout


class Access(Protocol):
    """What reads and writes named tensors: a unit, or the loss at a module's end."""

    @property
    def reads(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def writes(self) -> Sequence[str]: ...  # noqa: D102


@dataclass(frozen=True)
class Route:
    """What travels from a chunk to the next one.

    Attributes:
        names: Names of the tensors, sorted.
        gradients: Those of them for which a gradient comes back, sorted.
    """

    names: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Watch:
    """A later unit whose weights a module's loss reads, a fixed number of batches old.

    The forward of batch b reads the weights as they were after the step of batch b - lag. Before so
    many batches have run, the initial weights stand in. So what is read depends neither on the
    schedule nor on where the two chunks are.

    Attributes:
        unit: Index of the unit in the model; it belongs to a later module.
        lag: How many batches old, 1 or more.
    """

    unit: int
    lag: int = 2

    @property
    def ahead(self) -> int:
        """How many batches before they are read weights are sent; until then the sender keeps them.

        With 2, neighbouring stages hardly wait for each other; more would cost slots.
        """
        return min(self.lag, 2)


@dataclass(frozen=True)
class Routes:
    """The chunks of a model, and the routes between them.

    Attributes:
        layout: The chunks and their stages.
        into: For each chunk the route that leads to it; that of chunk 0 has no names.
        reads: For each chunk, which names it reads of what comes in; its loss is included.
        makes: For each chunk, the names that its units bind anew.
        watches: What the losses of chunks watch, by the number of the chunk.
    """

    layout: Layout
    into: tuple[Route, ...]
    reads: tuple[frozenset[str], ...]
    makes: tuple[frozenset[str], ...]
    watches: Mapping[int, Watch] = field(default_factory=dict)

    def watched(self, watcher: int) -> int:
        """The chunk that holds the unit which a chunk watches."""
        return self.layout.holder(self.watches[watcher].unit)

    def out_of(self, chunk: int) -> Route:
        """The route that leads from a chunk to the next one; the last one's has no names."""
        return self.into[chunk + 1] if chunk + 1 < len(self.into) else Route()

    def passing(self, chunk: int) -> frozenset[str]:
        """Names that a chunk hands on as they came in."""
        return frozenset(self.out_of(chunk).names) - self.makes[chunk]


def find_routes(
    layout: Layout,
    units: Sequence[Access],
    ends: Mapping[int, Sequence[Access]],
    watches: Mapping[int, Watch] | None = None,
) -> Routes:
    """Find the routes: what is read behind a cut and made before it travels over the cut.

    A gradient comes back for what an earlier unit of the same module has made.

    Args:
        layout: The chunks.
        units: The model's units.
        ends: For the last unit of each module, what follows it there, in order: units that make
            values for later losses, and the module's own loss.
        watches: For the last unit of a module whose loss watches a later unit, what it watches.
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
