"""Runs that are compared, and groups of these runs that differ only in their seed."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import hypot, sqrt
from statistics import fmean, stdev
from typing import Any, NamedTuple

from ppll_cli.observe.conditions import Conditions, name_without_seed, seed, seedless, unequal
from ppll_cli.observe.conditions import name as given
from ppll_cli.observe.runs import FoundRun, finite, whole

LONGEST_NAMES = 24
"""Largest length of a list of run names, in characters; a longer list is shortened, for
example to "0 +3"."""

Measure = Callable[["Row"], float | None]
"""A function that returns a measured value of a run; None if unknown."""


class Spread(NamedTuple):
    """Mean and sample standard deviation of `size` values. With one value, `deviation` is None."""

    mean: float
    deviation: float | None
    size: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean and standard deviation of values; None if there are no values."""
    found = list(values)
    if not found:
        return None
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def within_noise(one: Spread, other: Spread) -> bool | None:
    """Return whether noise can explain how two means differ; None if a mean is of a single value.

    The test is Welch's t-test, two-sided at 5 %, which allows unequal variances and sample sizes.
    """
    if one.deviation is None or other.deviation is None:
        return None
    errors = one.deviation / sqrt(one.size), other.deviation / sqrt(other.size)
    error = hypot(*errors)
    if error == 0:  # within each group all values are equal
        return one.mean == other.mean
    from scipy.special import stdtrit  # slow to import, and often not needed

    shares = [
        (each / error) ** 4 / (of.size - 1) for each, of in zip(errors, (one, other), strict=True)
    ]
    quantile = stdtrit(1 / sum(shares), 0.975)  # of Student's t-distribution
    return bool(abs(one.mean - other.mean) <= quantile * error)


@dataclass(eq=False)
class Row:
    """A run that is compared with others. Unknown numbers are None.

    Attributes:
        conditions: Values that must be equal for two runs to be comparable.
        settings: The run's values of the settings in which the compared runs differ.
        unequal: Conditions in which this run differs from most runs: its value, and theirs.
        seconds_to_target: Seconds of training and evaluation until an evaluation reached the
            comparison's `target`.
        bps: Comparable groups with the schedule `bp`. The first is the run's baseline.
        lls: Comparable groups with the schedule `ll`. The first is the run's second baseline.
    """

    run: FoundRun
    conditions: Conditions
    settings: Mapping[str, str]
    unequal: Mapping[str, tuple[Any, Any]]
    seconds_to_target: float | None = None
    bps: Sequence["Group"] = ()
    lls: Sequence["Group"] = ()

    @property
    def gpus(self) -> int | None:
        """Number of devices; None if unknown."""
        return whole(self.run.get("gpus"))

    def of_stages(self, key: str) -> list[float]:
        """Return a number that the run's summary has for stages; leave out stages without it."""
        stages = self.run.get("stages")
        known = stages if isinstance(stages, list) else []
        found = [finite(stage.get(key)) for stage in known if isinstance(stage, Mapping)]
        return [each for each in found if each is not None]

    @property
    def stage_bytes(self) -> list[int]:
        """Peak memory of each stage, in bytes, without the stages where it is unknown."""
        return [int(size) for size in self.of_stages("peak_memory_bytes") if size]

    def rate(self) -> float | None:
        """Return the samples per second in the steady state; None if unknown."""
        return finite(self.run.get("train", "samples_per_second"))

    def best(self) -> float | None:
        """Return the best metric of any evaluation; None if unknown."""
        return self.run.best

    def over_bp(self) -> float | None:
        """Return the speed-up over the baseline with back-propagation; None if unknown."""
        return self._over(self.bps)

    def over_ll(self) -> float | None:
        """Return the speed-up over the baseline with schedule `ll`; None if unknown."""
        return self._over(self.lls)

    def _over(self, baselines: Sequence["Group"]) -> float | None:
        rate, base = self.rate(), baselines[0].rate if baselines else None
        if rate is None or base is None or not base.mean:
            return None
        return finite(rate / base.mean)  # infinite if a damaged file gives a wrong speed


@dataclass(eq=False)
class Group:
    """Runs that differ only in their seed, or a single run.

    Means are over the completed runs. If no run is completed, they are over all runs.

    Attributes:
        reference: The group with which tables compare this one, to mark differences that noise can
            explain; None if there is none.
    """

    rows: Sequence[Row]
    reference: "Group | None" = None

    def keep_common_baselines(self) -> None:
        """Empty all runs' `bps` if a run in `averaged` has none; do the same with `lls`.

        So the mean speed-up is over the same runs as the mean speed.
        """
        # Runs may have different baselines, because older runs did not record all conditions.
        bps, lls = all(r.bps for r in self.averaged), all(r.lls for r in self.averaged)
        for row in self.rows:
            row.bps, row.lls = row.bps if bps else (), row.lls if lls else ()

    @cached_property
    def averaged(self) -> list[Row]:
        """The runs over which means are computed."""
        return [row for row in self.rows if row.run.status == "completed"] or list(self.rows)

    @property
    def first(self) -> Row:
        """The first run in `averaged`. It represents the group."""
        return self.averaged[0]

    @property
    def seeds(self) -> int:
        """Number of different seeds of the runs in `averaged`."""
        return len({_seed(row) for row in self.averaged})

    @property
    def repeated(self) -> list[int]:
        """Seeds that several runs in `averaged` have."""
        found = Counter(seed(row.run) for row in self.averaged)
        return [one for one, count in found.items() if one is not None and count > 1]

    @property
    def differs(self) -> str:
        """Settings in which the group differs from other runs, such as `stages=2 optim.lr=0.1`.

        A setting is left out if its value differs between the runs in `averaged`.
        """
        return " ".join(
            f"{key}={value}" if value else key
            for key, value in self.first.settings.items()
            if all(row.settings.get(key) == value for row in self.averaged)
        )

    @property
    def names(self) -> str:
        """The names of the runs, shortened if long."""
        names = [row.run.name for row in self.rows]
        whole = ", ".join(_ranges(names))
        fits = len(names) == 1 or len(whole) <= LONGEST_NAMES
        return whole if fits else f"{names[0]} +{len(names) - 1}"

    @property
    def name(self) -> str:
        """`names`, with a "*" at the end if the group is not comparable to most compared runs."""
        return self.names + ("*" if self.first.unequal else "")

    @property
    def given_name(self) -> str | None:
        """The user's name for the run; for several runs, without the seed at its end."""
        run = self.first.run
        return given(run) if len(self.rows) == 1 else name_without_seed(run)

    @property
    def status(self) -> str:
        """The status of the run; for several runs, the number of runs with each status."""
        if len(self.rows) == 1:
            return self.rows[0].run.status
        statuses = [row.run.status for row in self.rows]
        found = Counter(sorted(statuses, key=lambda status: status != "completed"))
        return ", ".join(f"{count} {status}" for status, count in found.items())

    def spread(self, measure: Measure) -> Spread | None:
        """Return mean and deviation over seeds. Runs with the same seed are averaged first."""
        found: dict[Hashable, list[float]] = {}
        for row in self.averaged:
            if (value := measure(row)) is not None:
                found.setdefault(_seed(row), []).append(value)
        means = [spread(values) for values in found.values()]
        return spread(each.mean for each in means if each is not None)

    @cached_property
    def rate(self) -> Spread | None:
        """Samples per second: mean and deviation over seeds."""
        return self.spread(Row.rate)

    def within_noise_of(self, other: "Group | None", measure: Measure) -> bool | None:
        """Return whether noise can explain how this group and `other` differ in a measure.

        The result is None if `other` is None or this group itself. It is also None if one of the
        groups has fewer than two seeds with a known value.
        """
        if other is None or other is self:
            return None
        mine, theirs = self.spread(measure), other.spread(measure)
        return None if mine is None or theirs is None else within_noise(mine, theirs)


def _ranges(names: Sequence[str]) -> list[str]:
    found: list[list[str]] = []
    for name in names:
        follows = found and name.isdecimal() and found[-1][-1].isdecimal()
        if follows and int(name) == int(found[-1][-1]) + 1:
            found[-1].append(name)
        else:
            found.append([name])
    return [part for run in found for part in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else run)]


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Group runs that differ only in their seed, in the order of each group's first run.

    An incomplete run joins only a group with completed runs, because a mean over incomplete runs
    means nothing.
    """
    known = {place: seedless(row.run) for place, row in enumerate(rows) if row.run.config}
    members: dict[int, list[int]] = {}
    completed = {place for place, row in enumerate(rows) if row.run.status == "completed"}
    for place in sorted(range(len(rows)), key=lambda place: place not in completed):
        alike = (n for n in members if n in completed and _alike(known, n, place))
        members.setdefault(next(alike, place), []).append(place)
    found = sorted(sorted(places) for places in members.values())
    return [Group([rows[place] for place in places]) for places in found]


def _alike(known: Mapping[int, Conditions], one: int, other: int) -> bool:
    return one in known and other in known and not unequal(known[one], known[other])


def _seed(row: Row) -> Hashable:
    found = seed(row.run)
    # The folder stands for an unknown seed, so that it differs from the seeds of other runs.
    return row.run.folder if found is None else found
