"""Runs side by side: what each reached, how fast, and whether they may be compared at all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppll_cli.observe.conditions import conditions, locality, settings, shown, unequal, usual
from ppll_cli.observe.runs import FoundRun, find


@dataclass(frozen=True)
class Row:
    """A run in the comparison; None is what is not known.

    Attributes:
        run: As it was found.
        differs: Settings, beside schedule and gpus, in which the runs differ.
        unequal: Conditions that are others than those of most runs: this run's, and theirs.
        bps: Back-propagations under the same conditions, the fastest first.
        samples_per_second: In the steady state.
        over_bp: That speed over back-propagation's.
        over_ll: The same over sequential local learning of the same modules.
        bubble: Share of the stages' time in which they waited.
        seconds_to_target: For how long it trained until an evaluation reached the target.
        best: The best metric of any evaluation.
        stage_bytes: Peak memory of each stage.
        auxiliary: Share of the stages' time that auxiliary networks took, on average.
    """

    run: FoundRun
    differs: str
    unequal: Mapping[str, tuple[Any, Any]]
    bps: Sequence[FoundRun]
    samples_per_second: float | None
    over_bp: float | None
    over_ll: float | None
    bubble: float | None
    seconds_to_target: float | None
    best: float | None
    stage_bytes: Sequence[int]
    auxiliary: float | None

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


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        rows: One for each run.
        metric: Name of the task's metric and its split, as most runs have it.
        target: The metric whose reaching is timed; None where nothing is known. It is the lowest
            that a comparable run completed with, so that each of them reaches it. This is our own
            reading of "time to the final metric": to time each run's own last value would favour
            those that end badly.
        notes: What has to be known to read the table.
    """

    rows: Sequence[Row]
    metric: str
    target: float | None
    notes: Sequence[str]

    @property
    def failed(self) -> list[Row]:
        """Runs that failed or were refused."""
        return [row for row in self.rows if row.run.status in ("failed", "refused")]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare all runs that are in these folders, at any depth."""
    runs = find(folders)
    ran = [run for run in runs if run.status != "refused"]
    known = {id(run): conditions(run) for run in ran}
    ended = {id(run): known[id(run)] for run in ran if run.summary}
    most = usual(ended or known)
    differing = {key: unequal(mine, most) for key, mine in known.items()}
    target = min(
        (
            run.evaluations[-1].value
            for run in ran
            if run.status == "completed" and run.evaluations and not differing[id(run)]
        ),
        default=None,
    )

    def baselines(run: FoundRun, schedule: str) -> list[FoundRun]:
        """Those with a schedule that may be compared to a run, the fastest first."""
        local = schedule == "ll" and run.schedule in ("ll", "ppll")
        comparable = [
            other
            for other in ran
            if other.schedule == schedule
            and _rate(other)
            and id(run) in known
            and not unequal(known[id(run)], known[id(other)])
            and not (local and unequal(locality(run), locality(other)))
        ]
        return sorted(comparable, key=lambda other: _rate(other) or 0.0, reverse=True)

    differs = dict(zip(map(id, ran), settings(ran), strict=True))
    rows = []
    for run in runs:
        others = differing.get(id(run), {})
        bps, lls = baselines(run, "bp"), baselines(run, "ll")
        rows.append(
            Row(
                run,
                differs.get(id(run), " ".join(run.overrides)),
                others,
                bps,
                _rate(run),
                _over(run, bps),
                _over(run, lls),
                _number(run.get("pipeline", "bubble_fraction")),
                None if _other_task(others) else _time_to(run, target),
                max((found.value for found in run.evaluations), default=None),
                [int(n) for s in _stages(run) if (n := _number(s.get("peak_memory_bytes")))],
                _mean([_number(s.get("aux_fraction")) for s in _stages(run)]),
            )
        )
    metric = most.get("metric") or next((run.metric for run in ran if run.metric), "metric")
    return Comparison(rows, metric, target, list(_notes(rows, metric, target)))


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _rate(run: FoundRun) -> float | None:
    return _number(run.get("train", "samples_per_second"))


def _over(run: FoundRun, baselines: Sequence[FoundRun]) -> float | None:
    rate = _rate(run)
    base = _rate(baselines[0]) if baselines else None
    return rate / base if rate is not None and base else None


def _other_task(others: Mapping[str, Any]) -> bool:
    """Whether reaching the metric of most would mean something else."""
    return any(key.partition(".")[0] in ("data", "metric") for key in others)


def _time_to(run: FoundRun, target: float | None) -> float | None:
    reached = [e for e in run.evaluations if target is not None and e.value >= target]
    return reached[0].seconds if reached else None


def _stages(run: FoundRun) -> list[Mapping[str, Any]]:
    stages = run.get("stages")
    return [s for s in stages if isinstance(s, Mapping)] if isinstance(stages, list) else []


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _notes(rows: Sequence[Row], metric: str, target: float | None) -> Iterator[str]:
    baselines = {row.bps[0].name: row.bps[0] for row in rows if row.over_bp is not None}
    if baselines:
        named = ", ".join(f"{name} ({_plural(_threads(bp))})" for name, bp in baselines.items())
        yield f"x bp: over the fastest back-propagation under the same conditions, {named}"
    short = []
    for row in rows:
        if row.over_bp is None or row.run.get("device") != "cpu":
            continue
        most = max(map(_threads, row.bps))
        if (wanted := (row.gpus or 1) * _threads(row.run)) > most:
            short.append(f"{row.run.name} ({_plural(wanted)} against {most})")
    if short:
        yield (
            f"x bp flatters {', '.join(short)}: on a CPU, add a back-propagation that has all the "
            "threads, schedule=bp gpus=1"
        )
    if any(row.over_ll is not None for row in rows):
        yield (
            "x ll: over sequential local learning under the same conditions; for ll and ppll, that "
            "of the same local method and modules"
        )
    if any(row.seconds_to_target is not None for row in rows):
        yield (
            f"s to {metric} {target:.4g}: seconds of training, evaluation included, until an "
            "evaluation reached the lowest value that a comparable run completed with"
        )
    for row in rows:
        if row.unequal:
            differences = ", ".join(
                f"{key} is {shown(mine)} and not {shown(theirs)}"
                for key, (mine, theirs) in row.unequal.items()
            )
            yield f"* {row.run.name} is not comparable to most: {differences}"
    for row in rows:
        if row.run.error:
            yield f"{row.run.name} {row.run.status}: {row.run.error.splitlines()[0]}"


def _threads(run: FoundRun) -> int:
    """Of each worker."""
    return int(_number(run.get("threads")) or 1)


def _plural(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"
