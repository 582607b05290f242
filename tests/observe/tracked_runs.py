"""Runs that are tracked by wandb inside the test."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.observe.tracker import Guarded, Tracked
from ppll_cli.observe.wandb_tracker import Upload, WandbTracker
from tests.observe.conftest import SUMMARY, line
from tests.observe.wandb_file import Recorded, recorded

CONFIG: dict[str, Any] = {"optim": {"lr": 0.1}, "gpus": None, "seed": 3}
WHAT = "gpipe vit seed=3 (0)"


def guard(**options: Any) -> Guarded:
    given = {"project": "p", "tags": [], "upload": Upload(), **options}
    return Guarded(WandbTracker(**given), "wandb")


def tracked(run_dir: Path, **changes: Any) -> Tracked:
    return Tracked(run_dir, CONFIG, {"schedule": "gpipe", "model": "vit"}, "accuracy", **changes)


def track(run_dir: Path, *steps: int, resumed: bool = False, **options: Any) -> Recorded:
    """Track a run with these steps, and return what the last wandb run there recorded."""
    run_dir.mkdir(parents=True, exist_ok=True)
    guarded = guard(**options)
    guarded.start(tracked(run_dir, resumed=resumed))
    for step in steps:
        guarded.metrics(line(step))
    guarded.end(SUMMARY)
    return recorded(run_dir)[-1]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the program's messages. wandb has its own log."""
    return [it.getMessage() for it in caplog.records if it.name.startswith("ppll_cli")]


def services() -> list[int]:
    """Return the ids of wandb's processes that this process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = stat.read_text().rpartition(")")
        except OSError:  # the process has ended since
            continue
        if "(wandb-core" in name and int(fields.split()[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def wait_until(true: Callable[[], bool], limit_s: float = 30.0) -> None:
    end_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.01)
