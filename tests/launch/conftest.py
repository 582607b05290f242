"""Fixtures for tests of the launcher."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from tests.launch.recorded_runs import write_config
from tests.launch.resumed import CASES, train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_config(tmp_path / "run")


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """Return a function that makes an uninterrupted run of a case.

    Each run is made once, by one of the processes of pytest-xdist.
    """
    made: dict[str, Result] = {}
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "unbroken"
    folder.mkdir(exist_ok=True)

    def unbroken(name: str) -> Result:
        if name not in made:
            run_dir = folder / name
            with (folder / f"{name}.lock").open("w") as lock:
                # held until the run is made, or its process has failed
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not run_dir.exists():
                    attempt = tmp_path_factory.mktemp("attempt") / "run"
                    train(attempt, *CASES[name][0])
                    attempt.rename(run_dir)
            summary = json.loads((run_dir / "summary.json").read_text())
            made[name] = Result(summary, run_dir)
        return made[name]

    return unbroken


@pytest.fixture
def copied(unbroken: Callable[[str], Result], tmp_path: Path) -> Callable[[str], Result]:
    """Return a function that copies an uninterrupted run, so that a test can damage it."""

    def copied(name: str) -> Result:
        result = unbroken(name)
        run_dir = tmp_path / "copy"
        shutil.copytree(result.run_dir, run_dir, symlinks=True)
        return Result(result.summary, run_dir)

    return copied
