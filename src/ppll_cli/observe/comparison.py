"""Compares runs: their metrics and speeds, and whether a comparison is fair."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

from ppll_cli.leaves.names import counted
from ppll_cli.observe.conditions import (
    LOCAL,
    conditions,
    locality,
    overrides,
    settings,
    shown,
    unequal,
    usual,
)
from ppll_cli.observe.groups import Group, Row, grouped
from ppll_cli.observe.runs import find, finite

NOISE = "~"
"""Sign after a number in a table: noise can explain the difference between this group's number and
that of the group with which it is compared."""


@dataclass(frozen=True)
class Comparison:
    """Runs to compare, their groups, and notes.

    Attributes:
        rows: All runs, each with its own settings and baselines.
        groups: The groups that the tables show, one in each line. A group is a single run, or runs
            that differ only in their seed.
        metric: Split and metric of most runs, such as "test accuracy".
        target: The worst final metric of all completed runs that are comparable to most runs. The
            tables show how long each run took to reach it. None if unknown.
        notes: Lines below the tables that explain them.
    """

    rows: Sequence[Row]
    groups: Sequence[Group]
    metric: str
    target: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        """Runs that failed, and jobs that were refused before they started."""
        return [row for row in self.rows if row.run.status in ("failed", "refused")]


def compare(folders: Sequence[Path], *, each: bool = False) -> Comparison:
    """Compare all runs in these folders, at any depth.

    If `each` is True, each run has its own line. If it is False, runs that differ only in their
    seed share a line. A speed-up is always the speed divided by the baseline's mean speed.
    """
    runs = find(folders)
    known = [conditions(run) for run in runs]
    ended = [mine for mine, run in zip(known, runs, strict=True) if run.summary]
    most = usual(ended or [mine for mine in known if mine])
    metric = most.get("metric") or next((run.metric for run in runs if run.metric), "metric")
    # The tables and pictures show this metric, so values of other metrics are left out.
    runs = [run if run.metric == metric else replace(run, evaluations=()) for run in runs]
    differs = overrides(runs)  # a refused job has no settings
    differs |= settings([run for run in runs if run.config])
    rows = [
        Row(run, mine, differs[run], unequal(mine, most))
        for run, mine in zip(runs, known, strict=True)
    ]
    ended_well = [
        (row.run.merit(value), value)
        for row in rows
        if row.run.status == "completed" and row.run.evaluations and not row.unequal
        for value in [row.run.evaluations[-1].value]
    ]
    target = min(ended_well)[1] if ended_well else None
    for row in rows:
        row.seconds_to_target = _seconds(row, target)
    groups = grouped(rows)
    for row in rows:
        row.bps, row.lls = (_baselines(row, groups, schedule) for schedule in ("bp", "ll"))
    alone = [replace(row) for row in rows]
    for group in groups:
        group.keep_common_baselines()
    for group in groups:
        group.reference = _reference(group, groups)
    seen = [Group([row]) for row in alone] if each else groups
    found = Comparison(alone, seen, metric, target)
    found.notes.extend(_notes(found, groups, each=each))
    return found


def _baselines(row: Row, groups: Sequence[Group], schedule: str) -> list[Group]:
    local = schedule == "ll" and row.run.schedule in LOCAL
    comparable = [
        (group.first.run.status != "completed", -group.rate.mean, group)
        for group in groups
        if row.conditions
        and group.first.run.schedule == schedule
        and group.rate
        and not unequal(row.conditions, group.first.conditions)
        and not (local and unequal(locality(row.run), locality(group.first.run)))
    ]
    # The first one is the run's baseline.
    return [group for *_, group in sorted(comparable, key=itemgetter(0, 1))]


def _reference(group: Group, groups: Sequence[Group]) -> Group | None:
    if group.first.bps or not group.first.conditions:
        return next(iter(group.first.bps), None)
    best = [
        (other.first.run.merit(found.mean), other)
        for other in groups
        if not unequal(group.first.conditions, other.first.conditions)
        and (found := other.spread(Row.best)) is not None
    ]
    return max(best, key=itemgetter(0))[1] if best else None


def _seconds(row: Row, target: float | None) -> float | None:
    run = row.run
    # The target was measured on the data that most runs used.
    if target is None or any(key.partition(".")[0] == "data" for key in row.unequal):
        return None
    reached = (e.seconds for e in run.evaluations if run.merit(e.value) >= run.merit(target))
    return next(reached, None)


def _notes(comparison: Comparison, groups: Sequence[Group], *, each: bool) -> Iterator[str]:
    yield from _on_speed(groups)
    if any(row.seconds_to_target is not None for row in comparison.rows):
        yield (
            f"s to {comparison.metric} {comparison.target:.4g}: seconds of training and evaluation "
            f"until an evaluation reached {comparison.target:.4g}, the worst final value of all "
            "completed runs that are comparable to most runs"
        )
    if not each:
        yield from _on_noise(groups)
    yield from _on_seeds(groups)
    for group in groups:
        if group.first.unequal:
            differences = ", ".join(
                f"{key} is {shown(mine)} instead of {shown(theirs)}"
                for key, (mine, theirs) in group.first.unequal.items()
            )
            yield f"* {group.names} is not comparable to most runs: {differences}"
    restarted = [
        f"{row.run.name} ({counted(len(found), 'restart')})"
        for row in comparison.rows
        if (found := row.run.get("restarts")) and isinstance(found, list)
    ]
    if restarted:
        yield f"stages restarted, which may have cost time: {', '.join(restarted)}"
    for row in comparison.rows:
        if row.run.unread:
            files = " and ".join(row.run.unread)
            why = f"because {files} cannot be read"
            yield f"{row.run.name} is shown with missing or wrong values, {why}"
        if row.run.error:
            yield f"{row.run.name} {row.run.status}: {row.run.error.splitlines()[0]}"


def _on_speed(groups: Sequence[Group]) -> Iterator[str]:
    baselines = {
        id(group.first.bps[0].first.run): group.first.bps[0]
        for group in groups
        if group.spread(Row.over_bp) is not None
    }
    if baselines:
        named = "; ".join(f"row {bp.name} ({_size(bp)})" for bp in baselines.values())
        yield f"x bp: speed-up over the fastest back-propagation under the same conditions: {named}"
    short = []
    for group in groups:
        if group.spread(Row.over_bp) is None or group.first.run.get("device") != "cpu":
            continue
        most = max(map(_threads, group.first.bps))
        if (wanted := _threads(group)) > most:
            short.append(f"row {group.names} ({counted(wanted, 'thread')} against {most})")
    if short:
        yield (
            f"x bp is too high for {'; '.join(short)}. For a fair comparison on a CPU, add "
            "back-propagation with all the threads: schedule=bp gpus=1"
        )
    if any(group.spread(Row.over_ll) is not None for group in groups):
        yield (
            "x ll: speed-up over sequential local learning under the same conditions; for ll and "
            "ppll, the baseline also has the same local method and modules"
        )


def _on_noise(groups: Sequence[Group]) -> Iterator[str]:
    ran = [group for group in groups if group.first.run.status == "completed"]
    several = [group for group in ran if group.seeds > 1]
    if several:
        yield "± is the standard deviation over the seeds; brackets hold the number of seeds"
    references = (group.reference for group in several if group.reference is not group)
    names = dict.fromkeys(f"row {each.name}" for each in references if each and each.seeds > 1)
    if names:
        yield (
            f"{NOISE} marks values whose difference from {' or '.join(names)} may be noise "
            "(Welch's t-test, 5 %); x bp and x ll are tested against the baselines described above"
        )
    alone = [f"row {group.names}" for group in ran if group.seeds == 1]
    if len(ran) > 1 and len(alone) == len(ran):
        yield (
            "one seed gives no estimate of noise, so small differences may mean nothing; "
            "several seeds, such as seed=0,1,2, give one"
        )
    elif len(ran) > 1 and alone:
        named = ", ".join(alone)
        yield f"one seed gives no estimate of noise, so differences of {named} are not tested"


def _on_seeds(groups: Sequence[Group]) -> Iterator[str]:
    left = [
        f"{row.run.name} ({row.run.status})"
        for group in groups
        for row in group.rows
        if row.run.status != group.first.run.status
    ]
    if left:
        yield f"not averaged, because not completed: {', '.join(left)}"
    for group in groups:
        if group.repeated:
            which = ", ".join(map(str, group.repeated))
            yield (
                f"{group.names}: runs with the same seed ({which}) are averaged first, and count "
                "as one"
            )


def _size(group: Group) -> str:
    mean = f"mean of {group.seeds} seeds, " if group.seeds > 1 else ""
    return mean + counted(_threads(group), "thread")


def _threads(group: Group) -> int:
    return (group.first.gpus or 1) * int(finite(group.first.run.get("threads")) or 1)
