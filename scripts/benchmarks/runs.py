"""Runs ppll-run for benchmarks, and keeps the results in files."""

import json
import platform
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import ppll_cli
from ppll_cli.config.options import conf_dir
from ppll_cli.config.settings import usable_cores
from ppll_cli.leaves.files import write_json
from ppll_cli.leaves.machine import memory_bytes, processor
from scripts.benchmarks.session import ppll_run

INTERRUPTED = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
"""Exit statuses of runs that a signal ended."""


class RunFailedError(Exception):
    """Raised when a run of a benchmark did not complete."""


def save(result: Mapping[str, Any], path: Path) -> None:
    """Write the results of a benchmark as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


class Results:
    """The results of a benchmark in a JSON file, which is rewritten after each row.

    A row is reused if it was measured with the same overrides, on the same machine and by the same
    version of the program. So a benchmark that was stopped continues with the missing rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.conditions = conditions()
        self.rows: dict[str, dict[str, Any]] = {}
        self._lock = Lock()
        if path.exists():
            self.rows = json.loads(path.read_text())["rows"]

    def find(self, name: str, overrides: Sequence[str]) -> dict[str, Any] | None:
        """Return the row with this name; None if it is missing or must be measured again."""
        row = self.rows.get(name)
        wanted = {"overrides": list(overrides), **self.conditions}
        return row if row is not None and wanted.items() <= row.items() else None

    def add(self, name: str, overrides: Sequence[str], row: Mapping[str, Any]) -> None:
        """Add a row, and write all rows to the file."""
        with self._lock:
            self.rows[name] = {"overrides": list(overrides), **row, **self.conditions}
            save({"rows": self.rows}, self.path)


def conditions() -> dict[str, Any]:
    """Return facts about this machine and the program.

    An earlier result, or an interrupted run, may be used only if its facts are equal to these.
    """
    return {"machine": machine(), "source": source()}


def run(overrides: Sequence[str], run_dir: Path, continues: bool = False) -> dict[str, Any]:
    """Run ppll-run in a new process, and return the content of `summary.json`.

    If `continues` is True, and `run_dir` has an interrupted run that the same version of the
    program began with the same overrides on this machine, this run is resumed. Otherwise an
    existing folder `run_dir` is removed first.

    Raises:
        RunFailedError: The run did not complete. The message contains its output.
    """
    mark = run_dir.with_name(f"{run_dir.name}.json")
    begun = {"overrides": list(overrides), **conditions()}
    command = ppll_run(*overrides, f"hydra.run.dir={run_dir}")
    if continues and mark.exists() and json.loads(mark.read_text()) == begun:
        command.append("resume=auto")
    else:
        shutil.rmtree(run_dir, ignore_errors=True)
        save(begun, mark)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        if done.returncode not in INTERRUPTED:  # it would fail again
            mark.unlink()
        said = done.stderr.strip() or done.stdout.strip()
        raise RunFailedError(f"{' '.join(overrides)} ended with {done.returncode}: {said}")
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def source() -> str:
    """Return a hash of the program's Python files and YAML files."""
    digest = sha256()
    program = Path(ppll_cli.__file__).parent.rglob("*.py")
    for path in sorted([*program, *conf_dir().rglob("*.yaml")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Return facts about this machine for result files."""
    import torch

    found = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "gpus": found,
        "python": platform.python_version(),
        "torch": version("torch"),
    }
