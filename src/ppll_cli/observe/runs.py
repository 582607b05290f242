"""Finds runs on disk: finished, interrupted, failed, refused, or still running.

What a folder lacks counts as unknown; a failed run causes no error here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from ppll_cli.leaves.files import read_json, read_json_lines

CONFIG_FILE = "config.json"
"""The record in a run directory; only the process that holds its lock may write there."""

SUMMARY_FILE, METRICS_FILE = "summary.json", "metrics.jsonl"

REFUSED_FILE = "refused.jsonl"
"""In a sweep's folder: one line for each refused job, which has no folder of its own."""

SWEEP_FILE = "sweep.json"
"""In a sweep's folder: the list of its jobs; only the process that holds its lock runs them."""

LOG_FILE = "ppll-run.log"

STARTED = frozenset({".hydra", LOG_FILE})
"""What a run directory may hold before `config.json`, which is written before training."""

SPLITS = ("val", "test")
"""The splits that are evaluated; results of a held-out part take precedence."""

LAST_STEP = {"lr", "grad_norm"}
"""Keys of a line of training that are about its last step alone."""

CONDITIONS = {"step", "epoch", "split", "module", "stage", "samples_per_second", "seconds"}
CONDITIONS |= LAST_STEP
"""Keys of a line of metrics that are neither the loss nor a metric."""


def only_started(folder: Path) -> bool:
    """Return whether a folder is empty, or holds only what a start-up that died has left.

    A start-up leaves no links, so a link counts as something else.
    """
    return all(path.name in STARTED and not path.is_symlink() for path in folder.iterdir())


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the model's own head.

    Attributes:
        step: Optimizer steps before it.
        seconds: How long the run had trained; None in runs of older programs.
        value: The task's metric, which is the first result of the line after the loss.
    """

    step: int
    seconds: float | None
    value: float


@dataclass(frozen=True)
class FoundRun:
    """A run that was found on disk.

    Attributes:
        name: Its path below the folder that was asked for.
        folder: The run directory; for a refused job the sweep's folder.
        status: completed, interrupted, failed or refused; running if nothing says how it ended.
        config: Its configuration; empty if unknown.
        summary: The content of `summary.json`; empty if the run has been resumed since.
        metric: Its split and the name of the task's metric, such as "test accuracy".
        evaluations: In the order of time, on the held-out part if there is one, else on the test
            set.
        error: Why it failed, or was refused.
        overrides: The overrides of a refused job.
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

    def get(self, *keys: str) -> Any:
        """Return the summary's value under nested keys, or None."""
        return _get(self.summary, *keys)

    def configured(self, *keys: str) -> Any:
        """Return the configuration's value under nested keys, or None."""
        return _get(self.config, *keys)

    @property
    def schedule(self) -> str:
        """The schedule's name; "?" if unknown."""
        given = [o.partition("=")[2] for o in self.overrides if o.startswith("schedule=")]
        known = self.get("schedule") or self.configured("choices", "schedule")
        return str(known or (given[-1] if given else "?"))


def find(folders: Sequence[Path]) -> list[FoundRun]:
    """Return all runs in these folders, at any depth and each once, in the order of names."""
    found: dict[Path, FoundRun] = {}
    depths: dict[Path, int] = {}
    for folder in map(Path.resolve, folders):
        inside = dict(_inside(folder))
        for place in sorted(inside, key=lambda place: _order(place.relative_to(folder))):
            found.setdefault(place, inside[place])
            depths[place] = max(depths.get(place, 0), len(place.relative_to(folder).parts))
    names = _names(depths, above=len(folders) > 1)
    return [replace(run, name=names[place]) for place, run in found.items()]


def _inside(folder: Path) -> Iterator[tuple[Path, FoundRun]]:
    """Yield each run below a folder with its place; for a refused job, its intended place."""
    run = read_run(folder)
    if run is not None:
        yield folder, run
        return
    # These come first: if such a job has run since, its own run replaces the refusal. A job that
    # was refused again, when it was to be resumed, keeps its run and gets the reason.
    refused = dict(_refused(folder / REFUSED_FILE))
    yield from refused.items()
    try:
        inner = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:  # for example, the folder belongs to another user
        return
    for path in inner:
        if path.name.startswith("."):
            continue
        for place, found in _inside(path):
            reason = refused[place].error if place in refused else None
            stopped = reason is not None and found.error is None and found.status != "completed"
            yield place, replace(found, error=reason) if stopped else found


def _names(depths: Mapping[Path, int], *, above: bool) -> dict[Path, str]:
    """Name each run by its path below what was asked for, and by parents if names are equal."""
    for more in count(int(above)):
        names = {
            place: str(Path(*place.parts[-max(1, depth + more) :]))
            for place, depth in depths.items()
        }
        if len({*names.values()}) == len(names):
            break
    return names


def _order(path: Path) -> list[tuple[bool, int, str]]:
    """Return a key that sorts numbers in paths by their value."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in path.parts]


def read_run(folder: Path) -> FoundRun | None:
    """Return the run whose directory this is; None if it is none, even with a `config.json`."""
    config, summary = _object(folder / CONFIG_FILE), _object(folder / SUMMARY_FILE)
    if not isinstance(config.get("choices"), Mapping):
        config = {key: value for key, value in config.items() if key != "choices"}
    if "choices" not in config and not {"status", "schedule"} <= {*summary}:
        return None
    lines = list(_objects(folder / METRICS_FILE))
    steps = summary.get("steps")
    if isinstance(steps, int) and max(map(_step, lines), default=0) > steps:
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
    )


def _refused(file: Path) -> Iterator[tuple[Path, FoundRun]]:
    for line in _objects(file):
        overrides = [str(override) for override in line.get("overrides") or ()]
        error = str(line.get("error", ""))
        name = str(line.get("job", "?"))
        run = FoundRun(name, file.parent, "refused", error=error, overrides=overrides)
        yield file.parent / name, run


def _evaluations(lines: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[Evaluation]]:
    """Return the metric of the model's own head, after its split, and its evaluations.

    If one of them has no time, an older program began the run, and all count as having none.
    """
    found: dict[str, tuple[str, list[Evaluation]]] = {}
    for line in lines:
        split, metric = (
            line.get("split"),
            next((key for key in line if key not in {*CONDITIONS, "loss"}), None),
        )
        if split not in SPLITS or line.get("module") is not None or metric is None:
            continue
        if isinstance(line[metric], int | float):
            made = Evaluation(_step(line), line.get("seconds"), line[metric])
            found.setdefault(split, (f"{split} {metric}", []))[1].append(made)
    metric, made_all = next((found[split] for split in SPLITS if split in found), (None, []))
    if any(made.seconds is None for made in made_all):
        made_all = [replace(made, seconds=None) for made in made_all]
    return metric, made_all


def _results(summary: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    """Return the results of a split; none if the summary has none."""
    found = summary.get(split)
    return found if isinstance(found, Mapping) else {}


def _metric(summary: Mapping[str, Any]) -> str | None:
    """Return the metric and its split as the summary has them."""
    names = ((split, name) for split in SPLITS for name in _results(summary, split))
    return next((f"{split} {name}" for split, name in names if name != "loss"), None)


def _step(line: Mapping[str, Any]) -> int:
    step = line.get("step")
    return step if isinstance(step, int) else 0


def _object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if the file is missing, damaged or unfinished."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file's complete lines; none if it cannot be read."""
    with suppress(OSError):
        yield from read_json_lines(file)


def _get(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
