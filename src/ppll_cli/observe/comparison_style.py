"""Chooses how a comparison's picture shows groups: colours for schedules, hatches for methods."""

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
"""Colours of schedules, from the palette of Okabe and Ito for colour-blind readers."""

OTHERS = ("#999999", "#882255", "#44AA99", "#AA4499", "#999933")
"""Colours for users' schedules, in the order of the runs, from Tol's muted palette."""

HATCHES = ("", "///", "...", "xxx", "\\\\\\\\\\", "ooo", "---", "++", "**", "||")
DASHES: Sequence[Any] = (
    *("-", "--", ":", "-."),
    *((0, (8, 2)), (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)), (0, (3, 3)), (0, (12, 3)), (0, (4, 1, 1))),
)
"""Line styles of curves. The n-th local method has the n-th line style and the n-th hatch."""


@dataclass(frozen=True)
class Style:
    """A colour for each schedule; a hatch of bars and a line style for each local method.

    Groups without local losses get the first hatch and the first line style.
    """

    colours: Mapping[str, str]
    hatches: Mapping[str, str]
    dashes: Mapping[str, Any]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "Style":
        """Choose colours, hatches and line styles for these groups."""
        schedules = dict.fromkeys(group.first.run.schedule for group in groups)
        methods = list(dict.fromkeys(m for g in groups if (m := method(g.first.run)) is not None))
        others = cycle(OTHERS)
        return cls(
            {name: COLOURS.get(name) or next(others) for name in schedules},
            dict(zip(methods, cycle(HATCHES), strict=False)),
            dict(zip(methods, cycle(DASHES), strict=False)),
        )

    def colour(self, group: Group) -> str:
        """Return the colour of a group's schedule."""
        return self.colours[group.first.run.schedule]

    def hatch(self, group: Group) -> str:
        """Return the hatch of a group's local method."""
        return self.hatches.get(method(group.first.run) or "", "")

    def dash(self, group: Group) -> Any:
        """Return the line style for a group's local method."""
        return self.dashes.get(method(group.first.run) or "", "-")
