"""The main function of a worker's process."""

import logging
import os
import re
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.connection import wait

import torch

from ppll_cli.errors import NonFiniteError, PpllError, RunFailedError
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Links
from ppll_cli.job.placing import prepare_compiler
from ppll_cli.job.pulse import BEAT_S, STARTING_LIMIT_S
from ppll_cli.leaves import lifeline
from ppll_cli.leaves.printable import error_text, shortened
from ppll_cli.leaves.random_states import seed_generators
from ppll_cli.observe import streams
from ppll_cli.transport.memory import remove_left
from ppll_cli.worker.memory import Memory
from ppll_cli.worker.worker import Worker

LONGEST_TRACEBACK = 20_000
"""Largest number of characters of a traceback in a report."""

_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|_ALLOC_FAILED")
"""Matches messages about exhausted memory; torch's `OutOfMemoryError` is only for CUDA tensors."""


class _ReportHandler(logging.Handler):
    def __init__(self, worker_report: Callable[..., None]) -> None:
        super().__init__()
        self._report = worker_report

    def emit(self, record: logging.LogRecord) -> None:
        self._report("log", level=record.levelno, message=self.format(record))


def main(job: Job, seat: Seat, links: Links) -> None:
    """Run a worker. If it fails, report the failure to the parent.

    Raises:
        SystemExit: The worker has failed; the exit status is 1.
    """
    streams.guard()  # a failing print in a user's model must not end the run
    lifeline.share(links.parent)
    # This comes first, because the parent notices late if a worker is stopped before its first sign
    # of life.
    links.pulse.beat()
    links.pulse.begin("starting", STARTING_LIMIT_S)
    worker: Worker | None = None
    try:
        memory = Memory(torch.device(job.device(seat)))
        threading.Thread(target=_stay_with_parent, args=(links, memory), daemon=True).start()
        _set_up(job, seat)
        worker = Worker(job, seat, links)
        logging.getLogger().addHandler(_ReportHandler(worker.report))
        worker.run()
        links.pulse.begin("done", None)
        while not links.parent.poll(1.0):  # if this process exited, sent tensors would be lost
            pass
        if links.groups is not None:
            links.groups.close()
    except BaseException as error:  # a user's code may also raise KeyboardInterrupt
        try:
            links.parent.send(_failure(job, seat, worker, error))
        except OSError:  # the parent has ended, and this may have caused `error`
            remove_left(os.getpid())
        raise SystemExit(1) from None


def _set_up(job: Job, seat: Seat) -> None:
    settings = job.settings
    torch.set_num_threads(job.threads)
    device = torch.device(job.device(seat))
    job.numerics.apply(device)
    if settings.compile:
        prepare_compiler()
    if settings.recompute:
        import_module("torch._dynamo")  # so that the first batch need not import it
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # For a user's code: our own code sets a seed before it draws random numbers.
    seed_generators(settings.seed)
    torch.manual_seed(settings.seed)


def _stay_with_parent(links: Links, memory: Memory) -> None:
    parent = parent_process()
    assert parent is not None
    while not wait([parent.sentinel], timeout=BEAT_S):
        links.pulse.beat(memory.now())
    # Usually the parent cleans up shared memory, but it has ended.
    remove_left(os.getpid())
    if links.recovery is not None:
        shutil.rmtree(links.recovery.folder, ignore_errors=True)
    os._exit(1)


def is_final(error: BaseException) -> bool:
    """Return whether a restarted worker would raise the same error again."""
    # A `RunFailedError` comes from a data loader. A restarted worker starts new loaders.
    return isinstance(error, PpllError) and not isinstance(error, RunFailedError)


def _said(error: BaseException) -> str:
    said = error_text(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(said):
        said += (
            "; out of memory: try a smaller batch_size, more schedule.microbatches where the "
            "schedule splits batches, precision=bf16 or more gpus"
        )
    return said


def _failure(
    job: Job, seat: Seat, worker: Worker | None, error: BaseException
) -> dict[str, object]:
    shapes: dict[str, list[int]] = {}
    for chunk in worker.chunks.values() if worker is not None else ():
        shapes |= chunk.tensors.shapes()
    return {
        "kind": "failed",
        "stage": seat.stage,
        "replica": seat.replica,
        "time": time.time(),
        "device": job.device(seat),
        "phase": "starting" if worker is None else str(worker.interpreter.instruction),
        "batch": None if worker is None else str(worker.mail.item),
        "shapes": shapes,
        "error": _said(error),
        "final": is_final(error),
        "on_purpose": isinstance(error, PpllError),
        "repeats": isinstance(error, NonFiniteError),
        "traceback": shortened(traceback.format_exc(), LONGEST_TRACEBACK),
    }
