"""Processes that keep other cores busy while something is measured on one.

Cores share caches, memory and often more: a stage takes longer while the others compute as well.
What is to predict them has to be measured beside processes that do what they do.
"""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

import torch

from ppll_cli.errors import WorkerFailedError
from ppll_cli.leaves import forkserver
from ppll_cli.predict.chain import Work

START_S = 300.0
"""How long a neighbour may take until its first training step is done."""

LEAVE_S = 5.0


@contextmanager
def neighbours(work: Work, count: int) -> Iterator[None]:
    """While the body runs, so many processes train copies of their own; none outlives it.

    Raises:
        WorkerFailedError: One of them failed.
    """
    if count:
        forkserver.start()
    context = forkserver.context()
    links, processes = [], []
    try:
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_train, args=(work, there), daemon=True)
            forkserver.begin(process)
            there.close()
            links.append(here)
            processes.append(process)
        deadline_s = time.monotonic() + START_S
        for link in links:
            _hear(link, max(0.0, deadline_s - time.monotonic()))
        yield
        for link in links:
            if link.poll():  # it has nothing more to say, unless it failed
                _hear(link, 0.0)
    finally:
        for process in processes:
            process.kill()
        for process, link in zip(processes, links, strict=True):
            process.join(LEAVE_S)
            link.close()


def _hear(link: Connection, limit_s: float) -> None:
    """Take a neighbour's word, that it trains or why it does not."""
    error, report = f"nothing was heard of it for {START_S:.0f} s", {}
    if wait([link], limit_s):
        try:
            report = link.recv()
        except EOFError:
            error = "the process is gone"
        else:
            if not report:
                return
    raise WorkerFailedError(
        {"name": "a process beside what is measured", "device": "cpu", "error": error, **report}
    )


def _train(work: Work, parent: Connection) -> None:
    """What a neighbour does, until it is killed or nobody is at the other end any more."""
    torch.set_num_threads(work.threads)
    try:
        work.numerics.apply(torch.device(work.device))
        chain = work.chain()
        chain.step()
        parent.send({})
        while not parent.poll():
            chain.step()
    except Exception as error:
        report = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        parent.send(report)
