"""Runs `torch.distributed` processes. They train when they are told to, and are idle otherwise.

Timed steps begin and end with a barrier of all ranks.
"""

import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ppll_cli.job.job import Job
from ppll_cli.leaves import forkserver
from ppll_cli.worker.memory import Memory
from scripts.benchmarks.paced import LEAST_STEPS, LIMIT_S, WARM_UP
from scripts.benchmarks.runs import RunFailedError
from scripts.benchmarks.torch_trainers import Trainer

LEAVE_S = 5.0
"""Seconds for a process to exit, and for other ranks to fail after a first failure."""

MakeTrainer = Callable[[Job, int], Trainer]


class Orders(Protocol):
    """A connection that gives orders to a rank and takes its answers."""

    def recv(self) -> Any:
        """Return the next order: lengths of spans of steps."""
        ...

    def send(self, obj: Any, /) -> None:
        """Send an answer."""
        ...


@dataclass(frozen=True)
class _Span:
    # Seconds of all steps, and the mean loss; None if the rank does not compute the loss.

    seconds: float
    loss: float | None


@dataclass(frozen=True)
class _Failure:
    traceback: str


class Ranks:
    """The processes that train a job with torch, one rank for each device.

    `name` is the contender's name in errors. `make_trainer` is called in each rank's process.

    All methods that wait for the ranks raise a RunFailedError if a rank fails or does not answer
    within `LIMIT_S` seconds.
    """

    def __init__(self, name: str, job: Job, make_trainer: MakeTrainer) -> None:
        self.name, self.job, self._make_trainer = name, job, make_trainer
        self._folder = tempfile.TemporaryDirectory(prefix="ppll-benchmark-")
        self._children: list[forkserver.Child] = []
        self._step_s = 0.0

    def start(self) -> None:
        """Start the ranks, and wait until each has built its model."""
        store = str(Path(self._folder.name, "store"))
        for rank in range(len(self.job.devices)):
            child = forkserver.Child(main, self._make_trainer, self.job, rank, store)
            self._children.append(child)
        self._gather()

    def warm_up(self) -> float:
        """Train the first steps, and return the mean loss of the last `WARM_UP[1]` steps."""
        return self._train(WARM_UP)

    def measure(self, seconds: float) -> float:
        """Train for about `seconds`, and return the samples per second."""
        self._train((1, max(LEAST_STEPS, round(seconds / self._step_s))))
        return self.job.course.batch_size / self._step_s

    def finish(self) -> list[int | None]:
        """End the training, and return the peak memory of each rank, in bytes."""
        self._order(())
        peaks = self._gather()
        for child in self._children:
            child.process.join(LEAVE_S)
        return peaks

    def stop(self) -> None:
        """Kill the processes of all ranks."""
        for child in self._children:
            child.close()
        self._folder.cleanup()

    def _train(self, spans: Sequence[int]) -> float:
        self._order(spans)
        measured: list[_Span] = self._gather()
        self._step_s = max(span.seconds for span in measured) / spans[-1]
        return fmean(span.loss for span in measured if span.loss is not None)

    def _order(self, spans: Sequence[int]) -> None:
        for child in self._children:
            child.link.send(spans)

    def _gather(self) -> list[Any]:
        # Return the ranks' answers; raise RunFailedError if one fails or does not answer.
        answers: dict[int, Any] = {}
        until, ranks = perf_counter() + LIMIT_S, range(len(self._children))
        while len(answers) < len(ranks):
            waited = {self._children[rank].link: rank for rank in ranks if rank not in answers}
            ready = wait(list(waited), timeout=until - perf_counter())
            for pipe in ready:
                assert isinstance(pipe, Connection)
                answers[waited[pipe]] = answer = self._receive(pipe)
                if isinstance(answer, _Failure):  # other ranks may fail soon after this rank
                    until = min(until, perf_counter() + LEAVE_S)
            if not ready:
                break
        silent = [f"rank {rank}: no answer" for rank in ranks if rank not in answers]
        failed = [f"rank {r}: {a.traceback}" for r, a in answers.items() if isinstance(a, _Failure)]
        if failed or silent:
            raise RunFailedError("\n".join([f"{self.name} failed", *failed, *silent]))
        return [answers[rank] for rank in ranks]

    @staticmethod
    def _receive(pipe: Connection) -> Any:
        try:
            return pipe.recv()
        except (EOFError, ConnectionResetError):
            return _Failure("the process is gone")


def main(make_trainer: MakeTrainer, job: Job, rank: int, store: str, orders: Connection) -> None:
    """Run a rank: execute orders, and exit if the process that gives orders has ended.

    The ranks connect through the path `store`, at which no file exists yet.
    """
    try:
        serve(make_trainer, job, rank, store, orders)
    except EOFError:
        raise SystemExit(1) from None
    except Exception:
        orders.send(_Failure(traceback.format_exc()))
        raise SystemExit(1) from None


def serve(make_trainer: MakeTrainer, job: Job, rank: int, store: str, orders: Orders) -> None:
    """Train as ordered until an order is empty.

    Answer with None when the model is built; after each order, with the seconds and the mean loss
    of its last span; and after the empty order, with the peak memory in bytes.
    """
    device = torch.device(job.devices[rank])
    torch.set_num_threads(job.threads)
    job.numerics.apply(device)
    memory = Memory(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=len(job.devices),
        timeout=timedelta(seconds=LIMIT_S),
        device_id=device if device.type == "cuda" else None,
    )
    trainer = make_trainer(job, rank)
    orders.send(None)
    done = 0
    while spans := orders.recv():
        for steps in spans:
            span = _timed(trainer, range(done, done + steps), device)
            done += steps
        orders.send(span)
        if done == sum(WARM_UP):
            memory.begin_peak()
    orders.send(memory.peak())
    dist.destroy_process_group()


def _timed(trainer: Trainer, steps: range, device: torch.device) -> _Span:
    trainer.prepare(steps)
    start = _all_here(device)
    losses = [trainer.step(step) for step in steps]
    seconds = _all_here(device) - start
    known: list[Tensor] = [loss for loss in losses if loss is not None]
    return _Span(seconds, float(torch.stack(known).mean()) if known else None)


def _all_here(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()
    return perf_counter()
