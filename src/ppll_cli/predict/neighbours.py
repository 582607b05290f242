"""Processes that keep other CPU cores busy while the measuring process measures.

Cores share caches and memory, so a stage takes longer while other stages compute.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait

import torch

from ppll_cli.errors import WorkerFailedError
from ppll_cli.leaves import forkserver
from ppll_cli.predict.chain import Work
from ppll_cli.predict.meter import report_of

START_S = 300.0
"""Seconds that neighbours may take until each has made its first training step."""


@contextmanager
def neighbours(work: Work, count: int) -> Iterator[None]:
    """Until the `with` block ends, run `count` processes that each train the units of `work`.

    Raises:
        WorkerFailedError: A process failed.
    """
    with ExitStack() as held:
        links = []
        for _ in range(count):
            child = forkserver.Child(_train, work)
            held.callback(child.close)
            links.append(child.link)
        deadline_s = time.monotonic() + START_S
        for link in links:
            _hear(link, max(0.0, deadline_s - time.monotonic()))
        yield
        for link in links:
            if link.poll():  # a neighbour sends a second message only if it failed
                _hear(link, 0.0)


def _hear(link: Connection, limit_s: float) -> None:
    """Wait for an empty message, which says that a neighbour trains; else raise an error."""
    error, report = f"it sent nothing for {START_S:.0f} s", {}
    if wait([link], limit_s):
        try:
            report = link.recv()
        except EOFError:
            error = "the process is gone"
        else:
            if not report:
                return
    name = "a process that computes beside the measured one"
    raise WorkerFailedError({"name": name, "device": "cpu", "error": error, **report})


def _train(work: Work, parent: Connection) -> None:
    """Train the units of `work` in this process, until it is killed or its parent ends."""
    torch.set_num_threads(work.setup.threads)
    try:
        work.setup.numerics.apply(torch.device(work.setup.device))
        chain = work.chain()
        chain.step()
        parent.send({})
        while not parent.poll():
            chain.step()
    except Exception as error:
        parent.send(report_of(error))
