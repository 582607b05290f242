"""Routes: the tensors that each chunk sends to the next, and the weights that local losses read."""

from collections.abc import Callable, Mapping, Sequence
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
    """The tensors that a chunk sends to the next chunk.

    `names` has the sorted names of the tensors. `gradients` has the sorted names of those tensors
    for which the next chunk sends back a gradient.
    """

    names: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Watch:
    """Says that a module's loss reads ("watches") the weights of a unit of a later module.

    Attributes:
        unit: Index of that unit in the model.
        lag: Age of the weights in batches, 1 or more. For batch b, the loss reads the weights after
            the optimizer step of batch b - lag, or the initial weights if b < lag. They are the
            same with every schedule and any number of stages.
    """

    unit: int
    lag: int = 2

    @property
    def ahead(self) -> int:
        """Number of batches by which the weights are sent before they are read: 1 or 2."""
        # With 2, neighbouring stages hardly wait for each other. More would only need more slots,
        # so with a larger lag the sender keeps the weights until it is time to send them.
        return min(self.lag, 2)


@dataclass(frozen=True)
class Routes:
    """The chunks of a model, and the routes between them.

    Attributes:
        layout: The chunks and their stages.
        into: For each chunk, the route from the previous chunk. The route to chunk 0 is empty.
        reads: For each chunk, the names of the inputs that its units, exports or loss read.
        makes: For each chunk, the names that its units and exports write.
        watches: For each chunk whose loss reads weights of a later unit, the `Watch`.
    """

    layout: Layout
    into: tuple[Route, ...]
    reads: tuple[frozenset[str], ...]
    makes: tuple[frozenset[str], ...]
    watches: Mapping[int, Watch] = field(default_factory=dict)

    def watched(self, watcher: int) -> int:
        """Return the index of the chunk whose weights are read by the loss of chunk `watcher`."""
        return self.layout.holder(self.watches[watcher].unit)

    def out_of(self, chunk: int) -> Route:
        """Return the route from a chunk to the next one; for the last chunk, an empty route."""
        return self.into[chunk + 1] if chunk + 1 < len(self.into) else Route()

    def passing(self, chunk: int) -> frozenset[str]:
        """Return the names of the tensors that a chunk gets and sends on without a change."""
        return frozenset(self.out_of(chunk).names) - self.makes[chunk]


def find_routes(
    layout: Layout,
    units: Sequence[Access],
    ends: Mapping[int, Sequence[Access]],
    watches: Mapping[int, Watch] | None = None,
    differentiable: Callable[[int, str], bool] = lambda unit, name: True,
) -> Routes:
    """Find which tensors each chunk has to send, and for which of them it gets a gradient back.

    A chunk sends the tensors that later units, exports or losses read. The next chunk sends back a
    gradient for each differentiable tensor that an earlier unit of the next chunk's module writes.

    Args:
        layout: The chunks and their stages.
        units: The units of the model, in order.
        ends: By index of a module's last unit, what runs after this unit: exports, then the loss.
        watches: By index of a module's last unit, the `Watch` of the module, if its loss has one.
        differentiable: Called with the index of a unit and the name of a tensor that it could read.
            Returns whether this tensor can have a gradient.
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
        start = chunk.units.start
        names = tuple(sorted(live)) if start else ()
        back = tuple(name for name in names if name in trained and differentiable(start, name))
        into.append(Route(names, back))
        reads.append(frozenset(wanted))
        makes.append(frozenset(made))
    watching = {layout.holder(index): watch for index, watch in (watches or {}).items()}
    return Routes(layout, tuple(into[::-1]), tuple(reads[::-1]), tuple(makes[::-1]), watching)
