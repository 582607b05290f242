"""Chooses how a comparison's picture shows groups: colours for schedules, hatches for methods."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

from ppll_cli.observe.comparison_labels import labels
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


class Drawn(NamedTuple):
    """A group as the picture shows it.

    A schedule has a colour; a local method has a hatch of bars and a line style of curves. Groups
    without local losses have the first hatch and the first line style.
    """

    group: Group
    label: str
    schedule: str
    colour: str
    method: str | None
    hatch: str
    dash: Any


def drawn(groups: Sequence[Group]) -> list[Drawn]:
    """Choose labels, colours, hatches and line styles for these groups."""
    others, looks = cycle(OTHERS), cycle(zip(HATCHES, DASHES, strict=True))
    colours = dict(COLOURS)
    methods: dict[str | None, tuple[str, Any]] = {None: (HATCHES[0], DASHES[0])}
    found = []
    for group, label in zip(groups, labels(groups), strict=True):
        schedule, of_losses = group.first.run.schedule, method(group.first.run)
        if schedule not in colours:
            colours[schedule] = next(others)
        if of_losses not in methods:
            methods[of_losses] = next(looks)
        look = colours[schedule], of_losses, *methods[of_losses]
        found.append(Drawn(group, label, schedule, *look))
    return found
