"""Starts and controls loaders, child processes that decode pictures in the background."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from math import ceil
from multiprocessing.connection import Pipe
from multiprocessing.util import Finalize
from queue import SimpleQueue
from subprocess import DEVNULL, Popen, TimeoutExpired
from threading import Thread
from typing import IO, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.labelled.loader import Wanted, image_of, shared_images
from ppll_cli.errors import PpllError, RunFailedError
from ppll_cli.leaves import lifeline
from ppll_cli.leaves.forkserver import how_ended, is_stopped, why_silent

MOST_AT_ONCE = 8
"""Largest number of pictures per request. It may be small, because decoding the pictures takes much
longer than sending the request.
"""

_BATCH = 128
"""Largest number of images that `images_of` yields together."""

_FEW = 200
"""Largest number of pictures that `images_of` decodes without loaders, which start slowly."""

ANSWER_LIMIT_S = 120.0
"""Time limit of a request in seconds, long enough for slow disks and networks."""

END_S = 5.0
"""Time limit in seconds for the end of a killed loader."""

_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from ppll_cli.data.labelled.loader import main; main(*map(int, sys.argv[2:]))"
)


class Job(NamedTuple):
    """Pictures to decode, the array for their images, and a future.

    The future is done when all images are in the array, or decoding has failed.
    """

    wanted: Sequence[Wanted]
    images: NDArray[np.uint8]
    answer: Future[None]


class Loaders:
    """Child processes that decode pictures. Several threads may use this object.

    On Linux the processes are killed when the thread that created this object ends. So create it
    in a thread that runs as long as the loaders are needed. The method `close` ends the processes.
    It is also called when this object is freed.

    Args:
        count: Number of processes.
        side: Height and width of the images, in pixels.
    """

    def __init__(self, count: int, side: int) -> None:
        self._side = side
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        loaders = [_Loader(side) for _ in range(count)]
        for loader in loaders:  # daemon threads, because a pool's threads would delay the exit
            Thread(target=loader.work, args=(self._jobs,), name="loader", daemon=True).start()
        self.processes = [loader.process for loader in loaders]
        # `close` also runs when this object is freed. So no thread may keep a reference to it.
        self.close = Finalize(self, _end, (loaders, self._jobs), exitpriority=10)

    def begin(self, wanted: Sequence[Wanted]) -> "Loading":
        """Start to decode pictures, and return before they are decoded.

        Raises:
            RunFailedError: `close` was called.
        """
        if not self.close.still_active():
            raise RunFailedError("the data loaders have been closed")
        images = np.empty((len(wanted), 3, self._side, self._side), np.uint8)
        at_once = min(MOST_AT_ONCE, ceil(len(wanted) / len(self.processes)))
        parts = [slice(first, first + at_once) for first in range(0, len(wanted), at_once)]
        jobs = [Job(wanted[part], images[part], Future()) for part in parts]
        for job in jobs:
            self._jobs.put(job)
        return Loading(images, [job.answer for job in jobs])


@dataclass(frozen=True)
class Loading:
    """Pictures that loaders are decoding; `images` waits for them."""

    _images: NDArray[np.uint8]
    _answers: Sequence[Future[None]]

    def images(self) -> NDArray[np.uint8]:
        """Wait for the images, and return them, uint8 [N, 3, side, side].

        Raises:
            ConfigError: A file cannot be read as a picture.
            RunFailedError: A loader has ended, was stopped, or does not answer.
        """
        for answer in self._answers:
            answer.result()  # every request has a time limit
        return self._images

    def cancel(self) -> None:
        """Cancel requests that have not begun."""
        for answer in self._answers:
            answer.cancel()


Key = TypeVar("Key", bound=Hashable)


class DecodedAhead(Generic[Key]):
    """Provides batches of images, and lets loaders decode the next batches in advance.

    Only one thread may use this object.

    Args:
        begin: Starts to decode the batch that has this key. Keys are chosen by the caller, for
            example numbers of batches.
    """

    def __init__(self, begin: Callable[[Key], Loading]) -> None:
        self._begin, self._begun = begin, dict[Key, Loading]()

    def images(self, keys: Sequence[Key]) -> NDArray[np.uint8]:
        """Return the images of a batch, uint8 [N, 3, side, side].

        Raise the exceptions of `Loading.images`.

        Args:
            keys: The key of this batch, and then the keys of the next batches. Loaders begin to
                decode them all. A batch begun in an earlier call is dropped if its key is not here.
        """
        for key in [key for key in self._begun if key not in keys]:
            self._begun.pop(key).cancel()
        for key in keys:
            if key not in self._begun:
                self._begun[key] = self._begin(key)
        return self._begun.pop(keys[0]).images()


def images_of(
    wanted: Sequence[Wanted], side: int, processes: int
) -> Generator[NDArray[np.uint8], None, None]:
    """Decode pictures, and yield their images in order, as square images of `side` x `side` pixels.

    Few pictures are decoded in this process, and each yielded array is one image, uint8
    [3, side, side]. Many pictures are decoded by `processes` loaders, and each array has several
    images, uint8 [n, 3, side, side].

    Raises:
        ConfigError: A file cannot be read as a picture.
        RunFailedError: A loader has ended, was stopped, or does not answer.
    """
    if len(wanted) <= _FEW:
        yield from (np.ascontiguousarray(image_of(each, side)) for each in wanted)
        return
    starts = range(0, len(wanted), _BATCH)
    with closing(Loaders(processes, side)) as loaders:
        ahead = DecodedAhead[int](lambda first: loaders.begin(wanted[first : first + _BATCH]))
        for number in range(len(starts)):
            yield ahead.images(starts[number : number + 2])


class _Loader:
    def __init__(self, side: int) -> None:
        self._connection, there = Pipe()
        with there, _shared_memory(MOST_AT_ONCE * 3 * side**2) as memory:
            self._images = shared_images(memory.fileno(), side)
            numbers = (there.fileno(), memory.fileno())
            path = json.dumps([str(each) for each in sys.path])
            self.process = Popen(
                [sys.executable, "-P", "-c", _PROGRAM, path, *map(str, (*numbers, side))],
                stdin=DEVNULL,
                stdout=DEVNULL,
                pass_fds=(*numbers, *lifeline.descriptors()),
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def work(self, jobs: "SimpleQueue[Job | None]") -> None:
        while (job := jobs.get()) is not None:
            if job.answer.set_running_or_notify_cancel():
                try:
                    self.decode(job.wanted, job.images)
                    job.answer.set_result(None)
                except Exception as error:
                    job.answer.set_exception(error)

    def end(self) -> None:
        self.process.kill()
        with suppress(TimeoutExpired):
            self.process.wait(END_S)

    def decode(self, wanted: Sequence[Wanted], images: NDArray[np.uint8]) -> None:
        connection, number = self._connection, self.process.pid
        try:
            connection.send(wanted)
            problem = why_silent(connection.poll, lambda: is_stopped(number), ANSWER_LIMIT_S)
            failure: PpllError | None = None if problem else connection.recv()
        except (EOFError, OSError) as error:
            with suppress(TimeoutExpired):
                self.process.wait(END_S)
            how = how_ended(self.process.returncode)
            raise RunFailedError(f"a data loader is gone ({how})") from error
        if problem:
            self.end()
            where = f"{wanted[0].path} and the files after it"
            raise RunFailedError(f"a data loader {problem} while it read {where}")
        if failure is not None:
            raise failure
        images[:] = self._images[: len(images)]


def _shared_memory(size: int) -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("ppll-pictures"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.truncate(size)
    return file


def _end(loaders: Sequence[_Loader], jobs: "SimpleQueue[Job | None]") -> None:
    for loader in loaders:
        loader.end()
        jobs.put(None)
