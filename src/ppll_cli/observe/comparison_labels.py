"""Labels of the groups in a comparison's picture, and the text above its panels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from textwrap import fill

from ppll_cli.leaves.names import counted
from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import NOISE, Comparison
from ppll_cli.observe.conditions import tags
from ppll_cli.observe.groups import Group

SHORT_NAME = 8
"""Largest length of a run name, in characters, with which a label begins."""

LONGEST = 240
"""Largest length of a label, in characters; a longer label is shortened in the middle."""

HEAD_WIDTH = 115
"""Largest number of characters in a line of the heading and of the legend."""

UNITS = {"psnr": "dB", "accuracy": "0 to 1", "ap": "0 to 1"}


def labels(groups: Sequence[Group]) -> list[str]:
    """Return a label for each group: its schedule, and the settings in which groups differ.

    A label begins with the name of the run if this name is short, as in a sweep. A long name is at
    the end of a label, and only if several labels would be equal without it. The status follows,
    if it is not the usual one (see `_completed`).
    """
    several = len({group.first.gpus for group in groups}) > 1
    told = [
        " ".join([*own, _label(group, several)])
        for group, own in zip(groups, _given(groups), strict=True)
    ]
    count = Counter(told)
    usual = _completed(groups)
    return [
        _named(group, text, count[text] > 1)
        + ("" if group.status == usual else f" ({group.status})")
        + (" *" if group.first.unequal else "")
        for group, text in zip(groups, told, strict=True)
    ]


def _given(groups: Sequence[Group]) -> list[list[str]]:
    """Return, for each group, the name and the tags that the user gave to its runs.

    The name is left out if all groups have the same name, and the tags if all have the same tags.
    """
    each = [(group.given_name, tags(group.first.run)) for group in groups]
    names, marks = ({*those} for those in zip(*each, strict=True)) if each else (set(), set())
    return [
        ([name] if name and len(names) > 1 else [])
        + ([f"[{words}]"] if words and len(marks) > 1 else [])
        for name, words in each
    ]


def _completed(groups: Sequence[Group]) -> str:
    """Return the usual status, which labels leave out: all runs of a group are completed.

    If groups have different numbers of runs, this is the status of a completed single run. Then
    the label of a larger group shows its number of runs, such as "3 completed".
    """
    sizes = {len(group.rows) for group in groups}
    most = max(sizes, default=1)
    return f"{most} completed" if most > 1 and len(sizes) == 1 else "completed"


def _label(group: Group, with_gpus: bool) -> str:
    parts = [group.first.run.schedule]
    if with_gpus and group.first.gpus is not None:
        parts.append(f"gpus={group.first.gpus}")
    if group.differs:
        parts.append(group.differs)
    return printable(" ".join(parts), LONGEST)


def _named(group: Group, text: str, ambiguous: bool) -> str:
    name = printable(group.names)
    short = len(name) <= SHORT_NAME
    found = f"{name}: {text}" if short else text
    return f"{found} in {name}" if ambiguous and not short else found


def shared(groups: Sequence[Group]) -> str:
    """Return the text above the panels: the number of runs, and the settings of all groups."""
    first = groups[0].first.conditions
    same = {
        key: str(first[key])
        for key in ("model", "data", "batch_size", "epochs", "device")
        if key in first and all(group.first.conditions.get(key) == first[key] for group in groups)
    }
    names = {group.given_name for group in groups}
    if len(names) == 1 and None not in names:
        same = {"name": str(names.pop()), **same}
    gpus = {group.first.gpus for group in groups}
    if len(gpus) == 1 and None not in gpus:
        same["gpus"] = str(gpus.pop())
    sizes, seeds = {len(group.rows) for group in groups}, {group.seeds for group in groups}
    runs = counted(sum(len(group.rows) for group in groups), "run")
    if max(sizes, default=1) > 1:
        what = "seeds" if seeds == sizes else "runs"
        each = f" of {sizes.pop()} {what}" if len(sizes) == 1 else ""
        runs += f" in {counted(len(groups), 'group')}{each}"
    settings = printable(" ".join(f"{key}={value}" for key, value in same.items()), LONGEST)
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
