"""Finds runs on disk: finished, interrupted, failed, refused, or still running.

Values from missing or damaged files are unknown, and raise no error.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from ppll_cli.leaves.files import read_json, read_json_lines
from ppll_cli.leaves.metric_lines import LINE_KEYS, is_number

CONFIG_FILE = "config.json"
"""The configuration of a run. Only a process that locks this file may write to the folder."""

SUMMARY_FILE, METRICS_FILE = "summary.json", "metrics.jsonl"

REFUSED_FILE = "refused.jsonl"
"""File in a sweep's folder with a line for each refused job, which has no folder of its own."""

SWEEP_FILE = "sweep.json"
"""File in a sweep's folder with the jobs. Only a process that locks this file runs the jobs."""

LOG_FILE = "ppll-run.log"

STARTED = frozenset({".hydra", LOG_FILE})
"""Names that a run directory may contain before `config.json` is written.

Hydra makes the log before `.hydra`."""

SPLITS = ("val", "test")
"""The evaluated splits. Results on `val` are used if there are any."""


def only_started(folder: Path) -> bool:
    """Return whether a folder is empty, or has only files of a run that died before training.

    A new run may use such a folder.
    """
    paths = list(folder.iterdir())
    names = {path.name for path in paths}
    # If `.hydra` is there without the log, another program has made it. A run makes no links
    # before its training.
    ours = not names or (LOG_FILE in names and names <= STARTED)
    return ours and not any(path.is_symlink() for path in paths)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the model's own head.

    Attributes:
        step: Optimizer steps before the evaluation.
        seconds: Training time before the evaluation; None in runs of older versions.
        value: The task's metric.
    """

    step: int
    seconds: float | None
    value: float


@dataclass(frozen=True, eq=False)
class FoundRun:
    """A run that was found on disk.

    Attributes:
        name: The last components of the run directory's path. `find` makes the name unique.
        folder: The run directory; for a refused job, the folder of the sweep.
        status: completed, interrupted, failed or refused; running if no file says how the run
            ended.
        config: The content of `config.json`; empty if unknown.
        summary: The content of `summary.json`; empty if unknown, or if the run was resumed later.
        metric: The evaluated split and the task's metric, such as "test accuracy"; None if unknown.
        evaluations: The evaluations on `val` or, if there are none, on `test`, in order of time.
        error: The message of the error that ended the run, or for which a job was refused; None if
            there is none.
        overrides: The overrides of a refused job.
        unread: The names of files that exist, but that this user may not read.
    """

    name: str
    folder: Path
    status: str
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None
    evaluations: Sequence[Evaluation] = ()
    error: str | None = None
    overrides: Sequence[str] = ()
    unread: Sequence[str] = ()

    def get(self, *keys: str) -> Any:
        """Return the summary's value under nested keys; None if there is none."""
        return _get(self.summary, *keys)

    def configured(self, *keys: str) -> Any:
        """Return the configuration's value under nested keys; None if there is none."""
        return _get(self.config, *keys)

    def recorded(self, key: str) -> Any:
        """Return the summary's value or, without one, the configuration's; None if unknown."""
        return self.configured(key) if (found := self.get(key)) is None else found

    @property
    def best(self) -> float | None:
        """The best metric of all evaluations; None without evaluations."""
        return max((found.value for found in self.evaluations), key=self.merit, default=None)

    def merit(self, value: float) -> float:
        """Return a number that is higher for a better metric."""
        return -value if self.configured("lower_is_better") is True else value

    @property
    def schedule(self) -> str:
        """The schedule's name; "?" if unknown."""
        given = [o.partition("=")[2] for o in self.overrides if o.startswith("schedule=")]
        known = self.get("schedule") or self.configured("choices", "schedule")
        return str(known or (given[-1] if given else "?"))


def find(folders: Sequence[Path]) -> list[FoundRun]:
    """Return all runs in these folders and their subfolders, each once, in order of names."""
    found: dict[Path, FoundRun] = {}
    depths: dict[Path, int] = {}
    for folder in map(Path.resolve, folders):
        inside = _inside(folder)
        for place in sorted(inside, key=lambda place: _order(place.relative_to(folder))):
            found.setdefault(place, inside[place])
            depths[place] = max(depths.get(place, 0), len(place.relative_to(folder).parts))
    names = _names(depths, above=len(folders) > 1)
    return [replace(run, name=names[place]) for place, run in found.items()]


def _inside(folder: Path) -> dict[Path, FoundRun]:
    found: dict[Path, FoundRun] = {}
    refused: dict[Path, FoundRun] = {}
    for path, inner, _ in os.walk(folder):  # skips folders that this user may not read
        run = read_run(Path(path))
        if run is not None:
            found[Path(path)] = run
            inner.clear()  # a run directory holds no other runs
        else:
            refused.update(_refused(Path(path, REFUSED_FILE)))
            inner[:] = [name for name in inner if not name.startswith(".")]
    for place, job in refused.items():
        run = found.setdefault(place, job)  # a job that was refused may have run later
        # If this run is not completed, the refused job would have resumed it.
        if run.error is None and run.status != "completed":
            found[place] = replace(run, error=job.error)
    return found


def _names(depths: Mapping[Path, int], *, above: bool) -> dict[Path, str]:
    for more in count(int(above)):  # until no two names are equal
        names = {
            place: str(Path(*place.parts[-max(1, depth + more) :]))
            for place, depth in depths.items()
        }
        if len({*names.values()}) == len(names):
            break
    return names


def _order(path: Path) -> list[tuple[bool, int, str]]:
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts
    ]


def read_run(folder: Path) -> FoundRun | None:
    """Return the run in a folder; None if the folder is not a run directory."""
    config, summary = object_in(folder / CONFIG_FILE), object_in(folder / SUMMARY_FILE)
    choices = config.pop("choices", None)
    if isinstance(choices, Mapping):
        named = {group: name for group, name in choices.items() if isinstance(name, str)}
        config["choices"] = named  # leaves out damaged options, which are not strings
    files = [folder / name for name in (CONFIG_FILE, SUMMARY_FILE, METRICS_FILE)]
    unread = [file.name for file in files if file.exists() and not os.access(file, os.R_OK)]
    recorded = "choices" in config or {"status", "schedule"} <= {*summary}
    if not recorded and not {CONFIG_FILE, SUMMARY_FILE} <= {*unread}:
        return None
    lines = list(_objects(folder / METRICS_FILE))
    steps = whole(summary.get("steps"))
    if steps is not None and max(map(_step, lines), default=0) > steps:
        summary = {}  # the run was resumed after it had ended
    metric, evaluations = _evaluations(lines)
    return FoundRun(
        folder.name,
        folder,
        str(summary.get("status", "running")),
        config,
        summary,
        metric or _metric(summary),
        evaluations,
        None if summary.get("error") is None else str(summary["error"]),
        unread=unread,
    )


def _refused(file: Path) -> Iterator[tuple[Path, FoundRun]]:
    for line in _objects(file):
        job, given = whole(line.get("job")), line.get("overrides", [])
        if job is None or not isinstance(given, list):
            continue
        overrides, name = [str(override) for override in given], str(job)
        error = str(line.get("error", ""))
        run = FoundRun(name, file.parent, "refused", error=error, overrides=overrides)
        yield file.parent / name, run  # the path that the run would have had


def _evaluations(lines: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[Evaluation]]:
    found: dict[str, tuple[str, list[Evaluation]]] = {}
    for line in lines:
        split = line.get("split")
        metric = next((key for key in line if key not in LINE_KEYS), None)
        if split not in SPLITS or line.get("module") is not None or metric is None:
            continue
        if (value := finite(line[metric])) is not None:
            made = Evaluation(_step(line), finite(line.get("seconds")), value)
            found.setdefault(split, (f"{split} {metric}", []))[1].append(made)
    metric, made_all = next((found[split] for split in SPLITS if split in found), (None, []))
    if any(made.seconds is None for made in made_all):  # an older version began the run
        made_all = [replace(made, seconds=None) for made in made_all]
    return metric, made_all


def _metric(summary: Mapping[str, Any]) -> str | None:
    splits = [split for split in SPLITS if isinstance(summary.get(split), Mapping)]
    names = (f"{split} {name}" for split in splits for name in summary[split] if name != "loss")
    return next(names, None)


def finite(value: Any) -> float | None:
    """Return a JSON value if it is a finite number that a float can hold, else None."""
    return value if is_number(value) and abs(value) <= sys.float_info.max else None


def whole(value: Any) -> int | None:
    """Return a JSON value if it is a whole number, else None."""
    return value if type(value) is int else None  # `isinstance` accepts true as an int


def _step(line: Mapping[str, Any]) -> int:
    return whole(line.get("step")) or 0


def object_in(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is missing or damaged."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        yield from read_json_lines(file)


def _get(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
