"""Runs as they are found on disk: finished, interrupted, failed, refused, or still going on.

Whatever a folder lacks is unknown; nothing here fails because a run did.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
"""In a run directory; who holds its lock is the one process that may write there."""

SUMMARY_FILE, METRICS_FILE = "summary.json", "metrics.jsonl"

REFUSED_FILE = "refused.jsonl"
"""In a sweep's folder: a line for each job that was refused, and so has no folder of its own."""


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
        summary: What `summary.json` holds.
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
        return str(self.get("schedule") or self.configured("choices", "schedule") or "?")


def find(folders: Sequence[Path]) -> list[FoundRun]:
    """All runs in these folders, at any depth, in the order of their names."""
    found = []
    for folder in folders:
        for place in sorted(_run_dirs(folder), key=lambda path: _order(path.relative_to(folder))):
            inside = place.relative_to(folder)
            name = str(inside) if len(folders) == 1 and inside.parts else _name(folder, inside)
            found.append(_read(name, place))
        for file in sorted(folder.rglob(REFUSED_FILE)):
            found += list(_refused(file))
    return sorted(found, key=_job) if len(folders) == 1 else found


def _run_dirs(folder: Path) -> Iterator[Path]:
    if (folder / CONFIG_FILE).exists() or (folder / SUMMARY_FILE).exists():
        yield folder
        return
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.name.startswith("."):
            yield from _run_dirs(inner)


def _name(folder: Path, inside: Path) -> str:
    return str(Path(folder.resolve().name, inside))


def _order(path: Path) -> list[tuple[bool, int, str]]:
    """Numbers as numbers."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in path.parts]


def _job(run: FoundRun) -> list[tuple[bool, int, str]]:
    return _order(Path(run.name))


def _read(name: str, folder: Path) -> FoundRun:
    config, summary = _object(folder / CONFIG_FILE), _object(folder / SUMMARY_FILE)
    status = str(summary.get("status", "running"))
    error = summary.get("error")
    return FoundRun(
        name, folder, status, config, summary, _evaluations(folder / METRICS_FILE), error
    )


def _refused(file: Path) -> Iterator[FoundRun]:
    for line in _objects(file):
        overrides = [str(override) for override in line.get("overrides", [])]
        error = str(line.get("error", ""))
        name = str(line.get("job", "?"))
        yield FoundRun(name, file.parent, "refused", error=error, overrides=overrides)


def _evaluations(file: Path) -> list[Evaluation]:
    by_split: dict[str, list[Evaluation]] = {}
    for line in _objects(file):
        known = {"step", "epoch", "split", "module", "stage", "loss", "samples_per_second"}
        metric = next((key for key in line if key not in known and key != "seconds"), None)
        value, step, seconds = line.get(metric or ""), line.get("step"), line.get("seconds")
        if line.get("module") is None and isinstance(value, int | float) and step is not None:
            found = Evaluation(step, seconds, value)
            by_split.setdefault(str(line.get("split")), []).append(found)
    return by_split.get("val") or by_split.get("test") or []


def _object(file: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is none, or no whole one yet."""
    try:
        found = json.loads(file.read_text(errors="replace"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file's whole lines."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _get(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
