"""Fixtures and helpers for tests of a run on several machines.

Here all of them are this machine.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest

from scripts.benchmarks.namespaces import as_torchrun
from scripts.benchmarks.session import Session, ppll_run
from tests.conftest import Result
from tests.warm import WarmSession

DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=53"]
DATA += ["data.test_samples=23", "batch_size=8", "eval_every=1"]  # 53 = 6 * 8 + 5
VIT = ["model=vit", "model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
PLAIN = ["device=cpu", "threads=1", "timeline=false"]
USUAL = [*PLAIN, *DATA]
LONG = [*USUAL, *VIT, "gpus=2", "epochs=100000"]
FOUND_S = 100.0
"""Limit for the end of a run after a fault. The program finds a fault within 10 seconds, and a busy
machine may take longer."""

HOST = socket.gethostname()
ROOT = Path(__file__).parents[3]
PATHS = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}

Start = Callable[..., list[Session]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a launcher for each machine.

    `first` has Python code that a machine's launcher executes first. If `cold`, launchers still
    have to import torch. All processes end with the test.
    """
    with ExitStack() as held:

        def start(
            *arguments: str,
            machines: int = 2,
            absent: Sequence[int] = (),
            first: Mapping[int, str] | None = None,
            environment: Mapping[str, str] | None = None,
            cold: bool = False,
        ) -> list[Session]:
            port = free_port()
            sessions = []
            for rank in sorted({*range(machines)} - {*absent}):
                told = {**ENVIRONMENT, **as_torchrun(rank, "127.0.0.1", port, machines)}
                told |= environment or {}
                output = tmp_path / f"printed-{rank}"
                if cold:
                    session = Session(ppll_run(*arguments), output, told)
                else:
                    session = WarmSession(arguments, output, told, (first or {}).get(rank, ""))
                sessions.append(held.enter_context(session))
            return sessions

        yield start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the run directory."""
    return tmp_path / "on-several-machines"


def free_port() -> int:
    """Return a port of this machine that is not in use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def ended(sessions: Sequence[Session], limit_s: float = FOUND_S) -> list[int | None]:
    """Return the exit status of each launcher, and check that none of their processes is left."""
    until_s = monotonic() + limit_s
    status = [session.wait(max(0.1, until_s - monotonic())) for session in sessions]
    for session in sessions:
        assert session.left() == [], session.printed()
    return status


def printed(sessions: Sequence[Session]) -> list[str]:
    """Return the output of each launcher."""
    return [session.printed() for session in sessions]


def result_of(folder: Path) -> Result:
    """Return the result that a run has written to its directory."""
    return Result(json.loads((folder / "summary.json").read_text()), folder)


def wait_for_training(sessions: Sequence[Session]) -> None:
    """Wait until all workers train."""
    told = "epoch 1/"
    assert sessions[0].wait_until(lambda: told in sessions[0].printed()), printed(sessions)
