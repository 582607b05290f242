"""The process that measures: its answers, and that it always ends."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from ppll_cli.errors import RunFailedError, WorkerFailedError
from ppll_cli.job.numerics import Numerics
from ppll_cli.leaves import cuda, forkserver
from ppll_cli.predict import meter, timing
from ppll_cli.predict.meter import Meter
from ppll_cli.predict.requests import time_copy, time_loss, time_units
from ppll_cli.transport.ring import RingTransport
from tests.conftest import prepared, pretend_devices
from tests.predict.given import SMALL

LIMIT_S = 30


def tell() -> tuple[int, int]:
    return os.getpid(), torch.get_num_threads()


def deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def disturb() -> None:
    timing.DISTURBED.append(0.1)


def fail() -> None:
    raise ZeroDivisionError("nothing to divide")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    signal.pause()


@pytest.fixture
def asked() -> Iterator[Meter]:
    with closing(Meter("cpu", Numerics("fp32", deterministic=False))) as made:
        yield made


def test_one_process_answers_all_requests(asked: Meter) -> None:
    """Each request sets the number of threads. The parent's number does not change.

    An answer says whether other programs disturbed the measurement.
    """
    assert not active_children()
    threads = torch.get_num_threads()
    (one, few), (other, more) = asked.ask(1, tell), asked.ask(3, tell)
    assert one == other != os.getpid()
    assert (few, more) == (1, 3)
    assert torch.get_num_threads() == threads
    asked.ask(1, disturb)
    assert asked.disturbed
    asked.ask(1, tell)
    assert not asked.disturbed
    asked.close()
    assert not active_children()
    assert asked.ask(1, tell)[0] != one


@pytest.mark.slow
def test_the_process_uses_the_numerics_of_workers(asked: Meter) -> None:
    assert not asked.ask(1, deterministic)
    with closing(Meter("cpu", Numerics("fp32", deterministic=True))) as other:
        assert other.ask(1, deterministic)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        (fail, r"^measuring \(cpu\): ZeroDivisionError: nothing to divide$"),
        pytest.param(
            *(die, r"^measuring \(cpu\): the process is gone \(killed by SIGKILL; if nobody did, "),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_failure_of_the_process_is_reported(
    asked: Meter, what: Callable[[], None], line: str
) -> None:
    with pytest.raises(WorkerFailedError, match=line) as told:
        asked.ask(1, what)
    assert ("in fail" in told.value.report.get("traceback", "")) == (what == fail)
    assert not active_children()


def test_a_process_that_does_not_answer_is_ended(
    asked: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "LIMIT_S", 0.2)
    with pytest.raises(WorkerFailedError, match=r"^measuring \(cpu\): no answer within 0 s$"):
        asked.ask(1, hang)
    assert not active_children()


def test_a_missing_fork_server_is_reported(asked: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise EOFError

    monkeypatch.setattr(forkserver.context().Process, "start", start)
    with pytest.raises(RunFailedError, match="multiprocessing's fork server is gone"):
        asked.ask(1, tell)


PARENT = """
from ppll_cli.job.numerics import Numerics
from ppll_cli.predict.meter import Meter
from tests.predict.test_meter import hang, tell

if __name__ == "__main__":
    meter = Meter("cpu", Numerics("fp32", deterministic=False))
    print(meter.ask(1, tell)[0], flush=True)
    meter.ask(1, hang)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no process descriptors here")
def test_the_process_ends_if_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        try:
            descriptor = os.pidfd_open(int(parent.stdout.readline()))
        finally:
            parent.kill()
        ended, _, _ = select.select([descriptor], [], [], LIMIT_S)
        os.close(descriptor)
        assert ended


def test_the_process_has_ended_when_workers_start(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[str] = []
    ask = Meter.ask

    def spy(self: Meter, threads: int, measure: Any, *args: Any) -> Any:
        asked.append(measure.__name__)
        return ask(self, threads, measure, *args)

    monkeypatch.setattr(Meter, "ask", spy)
    prepared(*SMALL, "partition=profile", "gpus=2")
    assert {*asked} == {"time_units", "time_loss", "time_copy"}
    assert not active_children()


@pytest.mark.parametrize(
    ("peers", "ipc", "by_host"), [(True, True, False), (False, True, True), (True, False, True)]
)
def test_the_parent_creates_no_cuda_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peers: bool, ipc: bool, by_host: bool
) -> None:
    """A context would hold memory of the first device during the whole run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pretend_devices(monkeypatch, 2)

    def never() -> None:
        raise AssertionError("CUDA would be initialised here")

    monkeypatch.setattr(torch.cuda, "_lazy_init", never)
    monkeypatch.setattr(cuda, "device_name", lambda device: f"model of {device}")
    monkeypatch.setattr(cuda, "can_access_peer", lambda *_: peers)
    copies: set[tuple[Any, ...]] = set()

    def answer(_: Meter, threads: int, measure: Any, *args: Any) -> Any:
        if measure is time_copy:
            copies.add(args[1:])
            return 1e-3
        if measure is time_loss:
            times = {"forward_s": 1e-3, "backward_s": 1e-3}
            return {**times, "saved_bytes": 1, "params": 1, "frozen_bytes": 0}
        assert measure is time_units
        unit = {"forward_s": 1e-3, "backward_s": 1e-3, "saved_bytes": 1, "params": 1}
        unit |= {"frozen_bytes": 1, "recomputed_bytes": 0}
        return [unit] * len(args[0].parts), {"step_s": 1e-3, "bytes": 16.0}

    monkeypatch.setattr(Meter, "ask", answer)
    small = [each for each in SMALL if each != "device=cpu"]
    options = ["partition=profile", "gpus=2", "device=cuda", f"transport.ipc={ipc}"]
    job = prepared(*small, *options).job
    assert job.devices == ("cuda:0", "cuda:1")
    assert copies == {("cuda:0", "cuda:1", by_host)}
    transport = RingTransport(depth=1)
    assert transport.obstacle(1000, job.devices) is None
    transport.channel(2, 1000, *job.devices)
