"""Runs side by side: what each reached, how fast, and whether they may be compared at all."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ppll_cli.files import write_text
from ppll_cli.observe.runs import FoundRun, find

CONDITIONS = ("model", "data", "batch_size", "epochs", "max_steps", "precision", "device")
"""Runs in which one of these differs are not comparable."""

PLACES = {"root", "download"}
"""Where data are read from changes nothing that is measured."""

OWN = {"schedule", "gpus", "threads", "cuts", "choices", "format", "resume", "tracker", "objective"}
"""Keys of a configuration that have a column, or that change nothing worth one."""


@dataclass(frozen=True)
class Row:
    """A run in the comparison; None is what is not known.

    Attributes:
        run: As it was found.
        differs: Settings, beside schedule and gpus, in which the runs differ.
        unequal: Conditions that are others than those of most runs: this run's, and theirs.
        samples_per_second: In the steady state.
        over_bp: That speed over the fastest back-propagation's under the same conditions.
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
class Column:
    """A column of the tables.

    Attributes:
        name: Its head.
        value: What a row has there, in full precision.
        text: That as people read it.
        left: Whether it is set flush left.
    """

    name: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str] = str
    left: bool = False


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        rows: One for each run.
        metric: Name of the task's metric.
        target: The metric whose reaching is timed; None where nothing is known. It is the worst
            that a comparable run ended with, so that each of them reaches it. This is our own
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

    def columns(self) -> list[Column]:
        """What is shown: no column without anything in it."""
        target = "target" if self.target is None else f"{self.metric} {self.target:.4g}"
        every = [
            Column("run", lambda row: row.name, left=True),
            Column("status", lambda row: row.run.status, left=True),
            Column("schedule", lambda row: row.run.schedule, left=True),
            Column("gpus", lambda row: row.gpus),
            Column("settings", lambda row: row.differs or None, left=True),
            Column("samples/s", lambda row: row.samples_per_second, lambda v: f"{v:.0f}"),
            Column("x bp", lambda row: row.over_bp, lambda v: f"{v:.2f}"),
            Column("x ll", lambda row: row.over_ll, lambda v: f"{v:.2f}"),
            Column("bubble", lambda row: row.bubble, lambda v: f"{v:.3f}"),
            Column(f"s to {target}", lambda row: row.seconds_to_target, lambda v: f"{v:.1f}"),
            Column(f"best {self.metric}", lambda row: row.best, lambda v: f"{v:.4f}"),
            Column("peak MB", lambda row: row.peak_bytes, lambda v: f"{v / 1e6:.0f}"),
            Column("auxiliary", lambda row: row.auxiliary, lambda v: f"{v:.3f}"),
        ]
        return [c for c in every if any(c.value(row) is not None for row in self.rows)]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        columns = self.columns()
        for column in columns:
            table.add_column(column.name, justify="left" if column.left else "right")
        for row in self.rows:
            table.add_row(*_texts(columns, row))
        return table

    def markdown(self) -> str:
        """A table, and the notes below it."""
        columns = self.columns()
        lines = [
            [column.name for column in columns],
            ["---" if column.left else "---:" for column in columns],
            *(_texts(columns, row) for row in self.rows),
        ]
        table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in c)} |" for c in lines]
        return "\n".join([*table, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def csv(self) -> str:
        """Plain numbers, in bytes, seconds and samples per second; nothing where it is unknown."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV)
        for row in self.rows:
            cells = [value(row) for value in CSV.values()]
            writer.writerow(["" if cell is None else cell for cell in cells])
        return file.getvalue()

    def write(self, folder: Path) -> None:
        """Write `comparison.csv`, `comparison.md` and `comparison.png`.

        Raises:
            OSError: One of them cannot be written.
        """
        from ppll_cli.observe.comparison_picture import picture

        write_text(folder / "comparison.csv", self.csv())
        write_text(folder / "comparison.md", self.markdown())
        picture(folder / "comparison.png", self)


CSV: dict[str, Callable[[Row], Any]] = {
    "run": lambda row: row.run.name,
    "folder": lambda row: row.run.folder,
    "status": lambda row: row.run.status,
    "comparable": lambda row: not row.unequal,
    "schedule": lambda row: row.run.schedule,
    "gpus": lambda row: row.gpus,
    "threads": lambda row: row.run.get("threads"),
    "settings": lambda row: row.differs,
    "samples_per_second": lambda row: row.samples_per_second,
    "speed_up_over_bp": lambda row: row.over_bp,
    "speed_up_over_ll": lambda row: row.over_ll,
    "bubble_fraction": lambda row: row.bubble,
    "seconds_to_target": lambda row: row.seconds_to_target,
    "best_metric": lambda row: row.best,
    "peak_memory_bytes": lambda row: row.peak_bytes,
    "aux_fraction": lambda row: row.auxiliary,
}


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare all runs that are in these folders, at any depth."""
    runs = find(folders)
    ran = [run for run in runs if run.config]
    conditions = {id(run): _conditions(run) for run in ran}
    most = Counter(map(_key, conditions.values())).most_common(1)
    usual: Mapping[str, Any] = json.loads(most[0][0]) if most else {}
    unequal = {
        id(run): {
            key: (mine.get(key), usual.get(key))
            for key in sorted({*mine, *usual})
            if mine.get(key) != usual.get(key)
        }
        for run, mine in ((run, conditions[id(run)]) for run in ran)
    }
    equal = [run for run in ran if not unequal[id(run)]]
    target = min((run.evaluations[-1].value for run in equal if run.evaluations), default=None)
    settings = {id(run): text for run, text in zip(ran, _settings(ran), strict=True)}
    rows = [
        Row(
            run,
            " ".join(run.overrides) or settings.get(id(run), ""),
            unequal.get(id(run), {}),
            _rate(run),
            _over(run, [bp for bp in ran if bp.schedule == "bp" and _same(run, bp, conditions)]),
            _over(run, [ll for ll in ran if _is_ll_of(run, ll, conditions)]),
            run.get("pipeline", "bubble_fraction"),
            _time_to(run, target),
            max((found.value for found in run.evaluations), default=None),
            [s["peak_memory_bytes"] for s in _stages(run) if s.get("peak_memory_bytes")],
            _mean([s.get("aux_fraction") for s in _stages(run)]),
        )
        for run in runs
    ]
    return Comparison(rows, _metric(runs), target, list(_notes(rows, ran, conditions)))


def _conditions(run: FoundRun) -> dict[str, Any]:
    """What has to be the same for two runs to be comparable."""
    found: dict[str, Any] = {}
    for key in CONDITIONS:
        value = run.configured(key)
        if key == "device":
            found["device"] = run.get("device") or value
            found["emulated"] = bool(run.get("emulated"))
        elif isinstance(value, Mapping):
            found[key] = run.configured("choices", key)
            found |= {f"{key}.{k}": v for k, v in value.items() if k not in PLACES | {"_target_"}}
        else:
            found[key] = value
    return found


def _key(conditions: Mapping[str, Any]) -> str:
    return json.dumps(conditions, sort_keys=True)


def _same(one: FoundRun, other: FoundRun, conditions: Mapping[int, Mapping[str, Any]]) -> bool:
    return bool(one.config) and conditions[id(one)] == conditions[id(other)]


def _is_ll_of(run: FoundRun, ll: FoundRun, conditions: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether it is sequential local learning under the same conditions, for a local run.

    Of the same modules and method; a run that knows no modules is compared to any.
    """
    if ll.schedule != "ll" or not _same(run, ll, conditions):
        return False
    local = run.schedule in ("ll", "ppll")
    return not local or all(
        one == other
        for one, other in (
            (run.configured("local"), ll.configured("local")),
            (run.get("modules"), ll.get("modules")),
        )
    )


def _rate(run: FoundRun) -> float | None:
    rate = run.get("train", "samples_per_second")
    return rate if isinstance(rate, int | float) else None


def _over(run: FoundRun, baselines: Sequence[FoundRun]) -> float | None:
    rate = _rate(run)
    rates = [found for found in map(_rate, baselines) if found]
    return rate / max(rates) if rate is not None and rates else None


def _time_to(run: FoundRun, target: float | None) -> float | None:
    reached = [e for e in run.evaluations if target is not None and e.value >= target]
    return reached[0].seconds if reached else None


def _stages(run: FoundRun) -> list[Mapping[str, Any]]:
    stages = run.get("stages")
    return [s for s in stages if isinstance(s, Mapping)] if isinstance(stages, list) else []


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _metric(runs: Sequence[FoundRun]) -> str:
    for run in runs:
        for split in ("test", "val"):
            for name in run.get(split) or ():
                if name != "loss":
                    return str(name)
    return "metric"


def _flat(node: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in node.items():
        if not before and name in OWN:
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif name not in PLACES | {"_target_"} and f"{before}{name}" != "fba.enabled":
            found[f"{before}{name}"] = value
    return found


def _settings(runs: Sequence[FoundRun]) -> list[str]:
    """For each run, the settings in which the runs differ, without those that have columns.

    Where they differ in the option of a group, that is named, and of the group's keys those that
    all options have.
    """
    flat = [_flat(run.config) for run in runs]
    chosen: list[Mapping[str, Any]] = [run.configured("choices") or {} for run in runs]
    groups = [g for g in dict.fromkeys(g for c in chosen for g in c) if g not in OWN]
    split = [g for g in groups if len({str(c.get(g)) for c in chosen}) > 1]
    keys = [
        key
        for key in dict.fromkeys(key for each in flat for key in each)
        if len({json.dumps(each.get(key)) for each in flat}) > 1
        and (key.partition(".")[0] not in split or all(key in each for each in flat))
    ]
    return [
        " ".join(
            [f"{group}={options.get(group)}" for group in split]
            + [f"{key}={_shown(each[key])}" for key in keys if each.get(key) is not None]
        )
        for each, options in zip(flat, chosen, strict=True)
    ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _texts(columns: Sequence[Column], row: Row) -> list[str]:
    values = [column.value(row) for column in columns]
    return [
        "" if value is None else column.text(value)
        for column, value in zip(columns, values, strict=True)
    ]


def _notes(
    rows: Sequence[Row], ran: Sequence[FoundRun], conditions: Mapping[int, Mapping[str, Any]]
) -> Iterator[str]:
    if any(row.over_bp is not None for row in rows):
        yield (
            "x bp: over the fastest back-propagation under the same conditions; x ll: over "
            "sequential local learning, for local schedules of the same modules"
        )
    short = []
    for row in rows:
        if row.over_bp is None or row.run.get("device") != "cpu":
            continue
        threads = [
            run.get("threads") or 1
            for run in ran
            if run.schedule == "bp" and _same(row.run, run, conditions)
        ]
        all_threads = (row.gpus or 1) * (row.run.get("threads") or 1)
        if all_threads > max(threads):
            short.append(f"{row.run.name} ({all_threads} threads against {max(threads)})")
    if short:
        yield (
            f"x bp flatters {', '.join(short)}: on a CPU, add a back-propagation that has all the "
            "threads, schedule=bp gpus=1"
        )
    for row in rows:
        if row.unequal:
            differences = ", ".join(
                f"{key} is {_shown(mine)} and not {_shown(theirs)}"
                for key, (mine, theirs) in row.unequal.items()
            )
            yield f"* {row.run.name} is not comparable to most: {differences}"
    for row in rows:
        if row.run.error:
            yield f"{row.run.name} {row.run.status}: {row.run.error.splitlines()[0]}"
