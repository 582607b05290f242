"""Runs in a comparison, and groups of those that differ in their seed alone."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ppll_cli.observe.conditions import Conditions, nameless, seed, seedless, unequal
from ppll_cli.observe.conditions import name as given
from ppll_cli.observe.noise import Spread, spread, within_noise
from ppll_cli.observe.runs import FoundRun

LONGEST_NAMES = 24
"""Characters of the names of a group's runs; where these are longer, the first and a number."""

Measure = Callable[["Row"], float | None]
"""A number of a run; None where it is not known."""


@dataclass(frozen=True)
class Row:
    """A run in the comparison; None is what is not known.

    Attributes:
        run: As it was found.
        settings: The settings, beside schedule and gpus, in which the runs differ.
        unequal: Conditions that are others than those of most runs: this run's, and theirs.
        samples_per_second: In the steady state.
        bubble: Share of the stages' time in which they waited.
        seconds_to_target: For how long it trained until an evaluation reached the target.
        best: The best metric of any evaluation.
        stage_bytes: Peak memory of each stage.
        auxiliary: Share of the stages' time that auxiliary networks took, on average.
        bps: Groups of back-propagation under the same conditions, the baseline first.
        lls: The same of sequential local learning of the same modules.
    """

    run: FoundRun
    settings: Mapping[str, str]
    unequal: Mapping[str, tuple[Any, Any]]
    samples_per_second: float | None
    bubble: float | None
    seconds_to_target: float | None
    best: float | None
    stage_bytes: Sequence[int]
    auxiliary: float | None
    bps: Sequence["Group"] = ()
    lls: Sequence["Group"] = ()

    @property
    def differs(self) -> str:
        """The settings as they are written on a command line."""
        return written(self.settings)

    @property
    def name(self) -> str:
        """The run's name, marked where it is not comparable to most."""
        return self.run.name + ("*" if self.unequal else "")

    @property
    def gpus(self) -> int | None:
        """How many devices it had."""
        gpus = self.run.get("gpus")
        return gpus if isinstance(gpus, int) else None

    @property
    def peak_bytes(self) -> int | None:
        """The largest stage's memory."""
        return max(self.stage_bytes, default=None)

    @property
    def over_bp(self) -> float | None:
        """Its speed over the mean of back-propagation's."""
        return _over(self.samples_per_second, self.bps)

    @property
    def over_ll(self) -> float | None:
        """The same over sequential local learning of the same modules."""
        return _over(self.samples_per_second, self.lls)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; or one run.

    Runs that did not complete are counted and not averaged, unless the group has no other.

    Attributes:
        rows: Its runs.
        reference: The group whose values its own are compared to; None where there is none.
    """

    rows: Sequence[Row]
    reference: "Group | None" = None

    @cached_property
    def averaged(self) -> list[Row]:
        """The runs whose values count."""
        return [row for row in self.rows if row.run.status == "completed"] or list(self.rows)

    @property
    def first(self) -> Row:
        """A run that stands for all of them."""
        return self.averaged[0]

    @property
    def seeds(self) -> int:
        """How many seeds its values are of."""
        return len({_seed(row) for row in self.averaged})

    @property
    def repeated(self) -> list[int]:
        """Seeds that several of its runs have."""
        found = Counter(seed(row.run) for row in self.averaged)
        return [one for one, count in found.items() if one is not None and count > 1]

    @property
    def settings(self) -> dict[str, str]:
        """The settings that all its runs have, of those in which the runs of all groups differ."""
        rows = self.averaged
        return {
            key: value
            for key, value in rows[0].settings.items()
            if all(row.settings.get(key) == value for row in rows)
        }

    @property
    def differs(self) -> str:
        """These as they are written on a command line."""
        return written(self.settings)

    @property
    def names(self) -> str:
        """The names of its runs, or of the first of them where they would be long."""
        names = [row.run.name for row in self.rows]
        whole = ", ".join(_ranges(names))
        fits = len(names) == 1 or len(whole) <= LONGEST_NAMES
        return whole if fits else f"{names[0]} +{len(names) - 1}"

    @property
    def name(self) -> str:
        """The same, marked where its runs are not comparable to most."""
        return self.names + ("*" if self.first.unequal else "")

    @property
    def given_name(self) -> str | None:
        """The name that the user gave its runs; of several runs without the seed at its end."""
        run = self.first.run
        return given(run) if len(self.rows) == 1 else nameless(run)

    @property
    def status(self) -> str:
        """How its runs ended: of several, how many."""
        if len(self.rows) == 1:
            return self.rows[0].run.status
        statuses = [row.run.status for row in self.rows]
        found = Counter(sorted(statuses, key=lambda status: status != "completed"))
        return ", ".join(f"{count} {status}" for status, count in found.items())

    def spread(self, measure: Measure) -> Spread | None:
        """Mean and spread over the seeds; runs of the same seed are averaged first."""
        found: dict[Hashable, list[float]] = {}
        for row in self.averaged:
            if (value := measure(row)) is not None:
                found.setdefault(_seed(row), []).append(value)
        means = [spread(values) for values in found.values()]
        return spread(each.mean for each in means if each is not None)

    @cached_property
    def rate(self) -> Spread | None:
        """Samples per second."""
        return self.spread(lambda row: row.samples_per_second)

    @property
    def over_bp(self) -> Spread | None:
        """The speed over the mean of back-propagation's."""
        return self.spread(lambda row: row.over_bp)

    @property
    def over_ll(self) -> Spread | None:
        """The same over sequential local learning of the same modules."""
        return self.spread(lambda row: row.over_ll)

    def is_same(self, other: "Group") -> bool:
        """Whether it is of the same runs, maybe at another time."""
        return self.first.run is other.first.run

    def like(self, other: "Group | None", measure: Measure) -> bool | None:
        """Whether a measure differs from another group's by no more than noise explains.

        None where there is nothing to compare with, or no estimate of the noise.
        """
        if other is None or self.is_same(other):
            return None
        mine, theirs = self.spread(measure), other.spread(measure)
        return None if mine is None or theirs is None else within_noise(mine, theirs)


def written(settings: Mapping[str, str]) -> str:
    """Settings as they are written on a command line."""
    return " ".join(f"{key}={value}" if value else key for key, value in settings.items())


def _ranges(names: Sequence[str]) -> list[str]:
    """Names, of which three or more numbers in a row are one range."""
    found: list[list[str]] = []
    for name in names:
        follows = found and name.isdigit() and found[-1][-1].isdigit()
        if follows and int(name) == int(found[-1][-1]) + 1:
            found[-1].append(name)
        else:
            found.append([name])
    return [part for run in found for part in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else run)]


def grouped(rows: Sequence[Row]) -> list[Group]:
    """The runs by all but their seed, in the order of the first run of each group.

    A run that did not complete joins a group only where one that completed does: what is known of
    several such runs has no mean.
    """
    known = {place: seedless(row.run) for place, row in enumerate(rows) if row.run.config}
    members: dict[int, list[int]] = {}
    completed = [place for place, row in enumerate(rows) if row.run.status == "completed"]
    for place in completed:
        alike = (n for n in members if _alike(known, n, place))
        members.setdefault(next(alike, place), []).append(place)
    for place in set(range(len(rows))).difference(completed):
        alike = (n for n in members if n in completed and _alike(known, n, place))
        members.setdefault(next(alike, place), []).append(place)
    found = sorted(sorted(places) for places in members.values())
    return [Group([rows[place] for place in places]) for places in found]


def _alike(known: Mapping[int, Conditions], one: int, other: int) -> bool:
    """Whether two runs differ in their seed alone; not where a configuration is not known."""
    return one in known and other in known and not unequal(known[one], known[other])


def _seed(row: Row) -> Hashable:
    """A run's seed; where it is not known, each run counts for itself."""
    found = seed(row.run)
    return row.run.folder if found is None else found


def _over(rate: float | None, baselines: Sequence[Group]) -> float | None:
    base = baselines[0].rate if baselines else None
    return rate / base.mean if rate is not None and base is not None and base.mean else None
