"""Runs as they are found on disk: finished, interrupted, failed, refused, or still going on.

Whatever a folder lacks is unknown; nothing here fails because a run did.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

from ppll_cli.leaves.files import read_json, read_json_lines

CONFIG_FILE = "config.json"
"""In a run directory; who holds its lock is the one process that may write there."""

SUMMARY_FILE, METRICS_FILE = "summary.json", "metrics.jsonl"

REFUSED_FILE = "refused.jsonl"
"""In a sweep's folder: a line for each job that was refused, and so has no folder of its own."""

SWEEP_FILE = "sweep.json"
"""In a sweep's folder: its jobs; who holds its lock is the one process that runs them."""

LOG_FILE = "ppll-run.log"

STARTED = frozenset({".hydra", LOG_FILE})
"""What stands in a run directory before `config.json` does, which is written before training."""

SPLITS = ("val", "test")
"""What is evaluated: a held-out part, where there is one, goes before the test set."""

LAST_STEP = {"lr", "grad_norm"}
"""Keys of a line of training that are about its last step alone."""

CONDITIONS = {"step", "epoch", "split", "module", "stage", "samples_per_second", "seconds"}
CONDITIONS |= LAST_STEP
"""Keys of a line of metrics that are neither the loss nor a metric."""


def only_started(folder: Path) -> bool:
    """Whether a folder is empty, or a start-up that died has left all that is in it.

    A link is nothing that a start-up leaves.
    """
    return all(path.name in STARTED and not path.is_symlink() for path in folder.iterdir())


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the model's own head.

    Attributes:
        step: Optimizer steps before it.
        seconds: For how long the run had trained; None in runs of older programs.
        value: The task's metric, the first result of a line beside the loss.
    """

    step: int
    seconds: float | None
    value: float


@dataclass(frozen=True)
class FoundRun:
    """A run.

    Attributes:
        name: Where it was found, below what was asked for.
        folder: The run directory; a refused job's is the sweep's.
        status: completed, interrupted, failed, refused, or running where nothing says how it ended.
        config: What was configured.
        summary: What `summary.json` holds; nothing where the run has gone on since.
        metric: Name of the task's metric, after the split that it is of: test accuracy.
        evaluations: In the order of time, of the held-out part where there is one, else of the test
            set.
        error: Why it failed, or was refused.
        overrides: Of a refused job.
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
        """What the summary says under nested keys, or None."""
        return _get(self.summary, *keys)

    def configured(self, *keys: str) -> Any:
        """What the configuration says under nested keys, or None."""
        return _get(self.config, *keys)

    @property
    def schedule(self) -> str:
        """The schedule's name, as far as it is known."""
        given = [o.partition("=")[2] for o in self.overrides if o.startswith("schedule=")]
        known = self.get("schedule") or self.configured("choices", "schedule")
        return str(known or (given[-1] if given else "?"))


def find(folders: Sequence[Path]) -> list[FoundRun]:
    """All runs in these folders, at any depth and each once, in the order of their names."""
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
    """Runs below a folder, and where each of them is; a refused job, where it would have been."""
    run = read_run(folder)
    if run is not None:
        yield folder, run
        return
    # First: what has run since then is no longer refused, but may not go on for that reason.
    refused = dict(_refused(folder / REFUSED_FILE))
    yield from refused.items()
    try:
        inner = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:  # somebody else's
        return
    for path in inner:
        if path.name.startswith("."):
            continue
        for place, found in _inside(path):
            reason = refused[place].error if place in refused else None
            stopped = reason is not None and found.error is None and found.status != "completed"
            yield place, replace(found, error=reason) if stopped else found


def _names(depths: Mapping[Path, int], *, above: bool) -> dict[Path, str]:
    """The path of each run below what was asked for, and as much above as tells them apart."""
    for more in count(int(above)):
        names = {
            place: str(Path(*place.parts[-max(1, depth + more) :]))
            for place, depth in depths.items()
        }
        if len({*names.values()}) == len(names):
            break
    return names


def _order(path: Path) -> list[tuple[bool, int, str]]:
    """Numbers as numbers."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in path.parts]


def read_run(folder: Path) -> FoundRun | None:
    """The run whose directory this is, if it is one: others have a `config.json` as well."""
    config, summary = _object(folder / CONFIG_FILE), _object(folder / SUMMARY_FILE)
    if "choices" not in config and not {"status", "schedule"} <= {*summary}:
        return None
    lines = list(_objects(folder / METRICS_FILE))
    if max(map(_step, lines), default=0) > (summary.get("steps") or inf):
        summary = {}  # it ended, and was resumed since
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
    """Of the model's own head: the metric with its split, and when it was measured.

    Where some of them have no time, an older program began the run, and no time is known.
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


def _metric(summary: Mapping[str, Any]) -> str | None:
    """The same, as the summary has it."""
    names = ((split, name) for split in SPLITS for name in summary.get(split) or ())
    return next((f"{split} {name}" for split, name in names if name != "loss"), None)


def _step(line: Mapping[str, Any]) -> int:
    step = line.get("step")
    return step if isinstance(step, int) else 0


def _object(file: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is none, or no whole one yet."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    """The same of a file's whole lines."""
    with suppress(OSError):
        yield from read_json_lines(file)


def _get(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
