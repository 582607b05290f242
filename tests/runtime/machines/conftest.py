"""Launchers of a run on two machines, here on one."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest

from ppll_cli.benchmarks.namespaces import as_torchrun
from ppll_cli.benchmarks.session import Session, ppll_run
from tests.conftest import Result

ROOT = Path(__file__).parents[3]
PATHS = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}
DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=53"]
DATA += ["data.test_samples=23", "batch_size=8", "eval_every=1"]  # 53 = 6 * 8 + 5
VIT = ["model=vit", "model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
USUAL = ["device=cpu", "threads=1", "timeline=false", *DATA]
FOUND_S = 25.0
"""Within 10 seconds a fault is to be found; to end everything takes longer on a busy machine."""

Start = Callable[..., list[Session]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a launcher for each machine, of which nothing outlives the test."""
    with ExitStack() as held:

        def start(*arguments: str, program: dict[int, list[str]] | None = None) -> list[Session]:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            sessions = []
            for rank in range(2):
                environment = {**as_torchrun(rank, "127.0.0.1", port), **ENVIRONMENT}
                command = (program or {}).get(rank, ppll_run())
                session = Session([*command, *arguments], tmp_path / f"printed-{rank}", environment)
                sessions.append(held.enter_context(session))
            return sessions

        yield start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The run directory."""
    return tmp_path / "on-two-machines"


def ended(sessions: list[Session], limit_s: float = FOUND_S) -> list[int | None]:
    """The exit status of each launcher, and nothing of them is left."""
    until_s = monotonic() + limit_s
    status = [session.wait(max(0.1, until_s - monotonic())) for session in sessions]
    for session in sessions:
        assert session.left() == [], session.printed()
    return status


def result_of(folder: Path) -> Result:
    return Result(json.loads((folder / "summary.json").read_text()), folder)


def wait_for_training(sessions: list[Session]) -> None:
    assert sessions[0].wait_until(lambda: "epoch 1/" in sessions[0].printed()), [
        session.printed() for session in sessions
    ]
