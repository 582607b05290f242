"""Chooses how a comparison's picture shows groups: their labels, colours, hatches and line styles.

It also makes the text above the picture's panels.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import cycle
from textwrap import fill
from typing import Any, NamedTuple

from ppll_cli.leaves.names import counted
from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import NOISE, Comparison
from ppll_cli.observe.conditions import method, tags
from ppll_cli.observe.groups import Group

SHORT_NAME = 8
"""A label begins with the run's name if this name has at most so many characters."""

LONGEST = 240
"""Largest length of a label, in characters; a longer label is shortened in the middle."""

HEAD_WIDTH = 115
"""Largest number of characters in a line of the heading and of the legend."""

UNITS = {"psnr": "dB", "accuracy": "0 to 1", "ap": "0 to 1"}


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

    The colour shows the schedule. The hatch of bars and the line style of curves show the local
    method; groups without local losses have the first hatch and the first line style.
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


def labels(groups: Sequence[Group]) -> list[str]:
    """Return a label for each group: its schedule, and facts and settings in which groups differ.

    The name of the group's runs, such as `0` in a sweep, comes first if it is short (`SHORT_NAME`).
    A longer name comes last, and only if labels would be equal without it. A status other than
    the usual one (such as "completed") follows, and `*` if runs are not comparable to most runs.
    """
    common, usual = _common(groups), _usual_status(groups)
    told = [_label(group, common) for group in groups]
    found = []
    for group, text in zip(groups, told, strict=True):
        name = printable(group.names)
        if len(name) <= SHORT_NAME:
            said = f"{name}: {text}"
        else:
            said = f"{text} in {name}" if told.count(text) > 1 else text
        said += "" if group.status == usual else f" ({group.status})"
        found.append(said + (" *" if group.first.unequal else ""))
    return found


def _facts(group: Group) -> dict[str, Any]:
    known = group.first.conditions
    return {
        "name": group.given_name,
        **{key: known.get(key) for key in ("model", "data", "batch_size", "epochs", "device")},
        "gpus": group.first.gpus,
        "tags": tags(group.first.run),
    }


def _common(groups: Sequence[Group]) -> dict[str, Any]:
    first, *rest = map(_facts, groups)
    return {k: value for k, value in first.items() if all(value == other[k] for other in rest)}


def _usual_status(groups: Sequence[Group]) -> str:
    # The status that labels leave out. A group of three completed runs has "3 completed".
    sizes = {len(group.rows) for group in groups}
    most = max(sizes)
    return f"{most} completed" if most > 1 and len(sizes) == 1 else "completed"


def _label(group: Group, common: Collection[str]) -> str:
    forms = {"name": "{}", "tags": "[{}]", "schedule": "{}", "gpus": "gpus={}"}
    facts = {**_facts(group), "schedule": group.first.run.schedule}
    own = [
        form.format(facts[key]) for key, form in forms.items() if facts[key] and key not in common
    ]
    return printable(" ".join([*own, group.differs]).rstrip(), LONGEST)


def shared(groups: Sequence[Group]) -> str:
    """Return the text above the panels: the number of runs, and the facts common to all groups."""
    sizes, seeds = {len(group.rows) for group in groups}, {group.seeds for group in groups}
    runs = counted(sum(len(group.rows) for group in groups), "run")
    if max(sizes) > 1:
        what = "seeds" if seeds == sizes else "runs"
        each = f" of {sizes.pop()} {what}" if len(sizes) == 1 else ""
        runs += f" in {counted(len(groups), 'group')}{each}"
    common = {k: v for k, v in _common(groups).items() if v is not None and k != "tags"}
    settings = printable(" ".join(f"{key}={value}" for key, value in common.items()), LONGEST)
    return fill(f"{runs}: {settings}" if settings else runs, HEAD_WIDTH)


def notes(comparison: Comparison) -> Iterator[str]:
    """Yield notes that explain the picture's symbols and say what the picture leaves out."""
    if any(group.seeds > 1 for group in comparison.groups):
        yield (
            "bar or large point: mean of a group's seeds; line: ± standard deviation; small "
            "points: its runs"
        )
    if any(note.startswith(NOISE) for note in comparison.notes):
        yield f"{NOISE}: within noise of the reference that comparison.md names"
    if any(group.first.unequal for group in comparison.groups):
        yield "*: not comparable to most runs; comparison.md says why"
    if any(note.startswith("x bp is too high") for note in comparison.notes):
        yield "some runs have more threads than back-propagation, see comparison.md"
    refused = sum(row.run.status == "refused" for row in comparison.rows)
    if refused:
        yield f"{counted(refused, 'refused run')} not drawn"


def with_unit(metric: str) -> str:
    """Return a metric, such as "test accuracy", with its unit or range if known."""
    unit = UNITS.get(metric.rpartition(" ")[2])
    return f"{metric} ({unit})" if unit else metric
