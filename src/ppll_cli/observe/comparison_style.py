"""How a comparison's picture tells groups apart: a colour a schedule, a hatch a local method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from ppll_cli.observe.conditions import method
from ppll_cli.observe.groups import Group

COLOURS = {
    "bp": "#000000",
    "ll": "#E69F00",
    "pp": "#D55E00",
    "gpipe": "#56B4E9",
    "1f1b": "#009E73",
    "interleaved": "#CC79A7",
    "zb_h1": "#F0E442",
    "ppll": "#0072B2",
}
"""By schedule: of Okabe and Ito's palette, whose colours differ for colour-blind eyes too."""

OTHERS = ("#999999", "#882255", "#44AA99", "#AA4499", "#999933")
"""Of a user's own schedules, in their order: of Tol's muted palette."""

HATCHES = ("", "///", "...", "xxx", "\\\\\\\\\\", "ooo", "---", "++", "**", "||")
DASHES: Sequence[Any] = (
    *("-", "--", ":", "-."),
    *((0, (8, 2)), (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)), (0, (3, 3)), (0, (12, 3)), (0, (4, 1, 1))),
)
"""Of local methods, in their order; what trains without local losses looks like the first."""


@dataclass(frozen=True)
class Style:
    """What each schedule and each local method looks like.

    Attributes:
        colours: By schedule.
        hatches: By local method, of bars.
        dashes: The same of curves.
    """

    colours: Mapping[str, str]
    hatches: Mapping[str, str]
    dashes: Mapping[str, Any]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "Style":
        """The looks of all that some groups have."""
        schedules = dict.fromkeys(group.first.run.schedule for group in groups)
        methods = list(dict.fromkeys(m for g in groups if (m := method(g.first.run)) is not None))
        others = cycle(OTHERS)
        return cls(
            {name: COLOURS.get(name) or next(others) for name in schedules},
            dict(zip(methods, cycle(HATCHES), strict=False)),
            dict(zip(methods, cycle(DASHES), strict=False)),
        )

    def colour(self, group: Group) -> str:
        """Of its schedule."""
        return self.colours[group.first.run.schedule]

    def hatch(self, group: Group) -> str:
        """Of its local method."""
        return self.hatches.get(method(group.first.run) or "", "")

    def dash(self, group: Group) -> Any:
        """The same, of its curve."""
        return self.dashes.get(method(group.first.run) or "", "-")
