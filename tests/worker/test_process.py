"""The start of a worker's process, and which of its errors a restart may remedy."""

from multiprocessing import Pipe
from multiprocessing.sharedctypes import RawValue
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppll_cli.errors import ConfigError, NonFiniteError, ReplayError, RunFailedError
from ppll_cli.job.job import Seat
from ppll_cli.job.links import Links
from ppll_cli.job.pulse import Pulse
from ppll_cli.leaves import lifeline
from ppll_cli.observe import streams
from ppll_cli.worker import process


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (NonFiniteError(3, 0, None), True),
        (ReplayError("the tensor 'x'", "TrainBatch(step=3)"), True),
        (ConfigError("data.root", "birds", "cannot be read"), True),
        (RunFailedError("a data loader is gone (killed by SIGKILL)"), False),
        (RuntimeError("device-side assert"), False),
        (MemoryError(), False),
    ],
)
def test_an_error_that_comes_again_is_final(error: Exception, final: bool) -> None:
    """A loader that was killed once ended a run with `recover=stage`."""
    assert process.is_final(error) == final


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),  # for a context
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_an_error_for_lack_of_memory_suggests_what_needs_less(
    error: Exception, advised: bool
) -> None:
    said = process._said(error)
    assert said.startswith(type(error).__name__)
    assert ("; out of memory: try a smaller batch_size" in said) == advised


def test_a_worker_gives_a_sign_of_life_before_its_long_limit_applies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that was stopped in between was noticed only after the limit of 900 s."""
    begun: list[float] = []

    class Watched(Pulse):
        def begin(self, doing: str, limit_s: float | None) -> None:
            begun.append(self.alive_s)
            raise SystemExit

    for module, name in ((streams, "guard"), (lifeline, "share")):
        monkeypatch.setattr(module, name, lambda *_: None)
    job: Any = None  # a process that is stopped so early has not looked at its job
    links = Links(parent=Pipe()[0], stop=RawValue("b", 0), pulse=Watched())
    with pytest.raises(SystemExit):
        process.main(job, Seat(0), links)
    assert begun[0] > 0


def test_a_worker_reports_that_it_cannot_start_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a small `ulimit -u`, it left a traceback on the terminal, and nobody knew the cause."""

    def start(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    for module, name in ((streams, "guard"), (lifeline, "share"), (Thread, "start")):
        monkeypatch.setattr(module, name, start if module is Thread else lambda *_: None)
    job: Any = SimpleNamespace(device=lambda _: "cpu")
    here, there = Pipe()
    links = Links(parent=there, stop=RawValue("b", 0), pulse=Pulse())
    with pytest.raises(SystemExit):
        process.main(job, Seat(0), links)
    report = here.recv()
    assert (report["kind"], report["phase"]) == ("failed", "starting")
    assert report["error"] == "RuntimeError: can't start new thread"
