"""The loaders of a process: child processes that decode pictures while it does something else."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from math import ceil
from mmap import ALLOCATIONGRANULARITY, mmap
from multiprocessing.connection import Pipe
from multiprocessing.util import Finalize
from queue import SimpleQueue
from subprocess import DEVNULL, Popen, TimeoutExpired
from threading import Lock, Thread
from time import monotonic
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.labelled.loader import Request, Wanted
from ppll_cli.errors import PpllError, RunFailedError
from ppll_cli.leaves import lifeline
from ppll_cli.leaves.forkserver import fate, is_stopped

MOST_AT_ONCE = 8
"""Pictures that a loader is asked for at once: asking costs little beside decoding them."""

LOOK_S = 0.5

ANSWER_LIMIT_S = 120.0
"""How long a loader may take for one request, from a slow disk or over a network."""

STOPPED_LIMIT_S = 6.0
"""How long a loader may be stopped (SIGSTOP) before it is given up."""

END_S = 5.0
"""How long a loader that was killed may take to be gone."""

_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from ppll_cli.data.labelled.loader import main; main(*map(int, sys.argv[2:]))"
)

Job = tuple[Request, Future[None]]


class Loaders:
    """Child processes that decode pictures. Several threads may ask them for pictures.

    On Linux they end with the thread that makes this object, so it has to be one that stays.

    Args:
        count: How many processes.
        side: Height and width of the images that are made, in pixels.

    Attributes:
        memory: What is shared with them.
    """

    def __init__(self, count: int, side: int) -> None:
        self._side = side
        self.memory = SharedMemory()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._loaders = [_Loader(self.memory.descriptor) for _ in range(count)]
        for loader in self._loaders:
            Thread(target=loader.work, args=(self._jobs,), name="loader", daemon=True).start()
        # Called when this object or this process ends. No thread may hold a reference to this.
        ends = (self._loaders, self._jobs, self.memory)
        self._end = Finalize(self, _end, ends, exitpriority=10)

    def __enter__(self) -> "Loaders":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def processes(self) -> list[Popen[bytes]]:
        """The loaders."""
        return [loader.process for loader in self._loaders]

    def begin(self, wanted: Sequence[Wanted]) -> "Loading":
        """Have pictures decoded; returns at once.

        Raises:
            RunFailedError: A loader is gone.
        """
        for loader in self._loaders:
            if loader.process.poll() is not None:
                raise loader.gone()
        image_bytes = 3 * self._side**2
        region = self.memory.take(len(wanted) * image_bytes)
        at_once = min(MOST_AT_ONCE, ceil(len(wanted) / len(self._loaders)))
        answers: list[Future[None]] = []
        for first in range(0, len(wanted), at_once):
            offset = region.offset + first * image_bytes
            request = Request(tuple(wanted[first : first + at_once]), self._side, offset)
            answers.append(Future())
            self._jobs.put((request, answers[-1]))
        return Loading(answers, self.memory, region, (len(wanted), 3, self._side, self._side))

    def close(self) -> None:
        """End the loaders; what they were asked for fails."""
        self._end()


class Loading:
    """Pictures that are being decoded.

    Args:
        answers: Of the loaders that do it.
        memory: The memory that is shared with them.
        region: Where in it the images go.
        shape: Of the images together.
    """

    def __init__(
        self,
        answers: Sequence[Future[None]],
        memory: "SharedMemory",
        region: "Region",
        shape: tuple[int, ...],
    ) -> None:
        self._answers, self._memory, self._region, self._shape = answers, memory, region, shape

    def images(self) -> NDArray[np.uint8]:
        """The images, uint8 [N, 3, side, side], once they are there; valid until `release`.

        Raises:
            ConfigError: A file cannot be read as a picture.
            RunFailedError: A loader is gone, or is stuck.
        """
        for answer in self._answers:
            answer.result()  # bounded, because every loader's time for a request is
        return np.frombuffer(self._region.view, np.uint8, int(np.prod(self._shape))).reshape(
            self._shape
        )

    def release(self) -> None:
        """Give the memory back; pictures that nobody has begun to decode are not decoded."""
        for answer in self._answers:
            if not answer.cancel():
                answer.exception()
        self._memory.give_back(self._region)


class Region:
    """A piece of the shared memory.

    Attributes:
        offset: Where it begins, in bytes.
        view: What is in it.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self.offset, self.view = offset, mmap(descriptor, size, offset=offset)


class SharedMemory:
    """Memory that processes share: a file that has no name and grows as needed."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.fdopen(os.memfd_create("ppll-pictures"), "r+b")
        else:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as this
        self._size = 0
        self._free: dict[int, list[Region]] = {}
        self._lock = Lock()

    @property
    def descriptor(self) -> int:
        """Of the file."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file; regions that are in use stay until they are freed."""
        self._file.close()

    def take(self, size: int) -> Region:
        """A free region of at least so many bytes."""
        whole = ceil(size / ALLOCATIONGRANULARITY) * ALLOCATIONGRANULARITY
        with self._lock:
            if free := self._free.get(whole):
                return free.pop()
            offset, self._size = self._size, self._size + whole
            os.ftruncate(self.descriptor, self._size)
            return Region(self.descriptor, offset, whole)

    def give_back(self, region: Region) -> None:
        """The region is free again."""
        with self._lock:
            self._free.setdefault(len(region.view), []).append(region)


class _Loader:
    """A loader, seen from the process that started it.

    Args:
        memory: Descriptor of the shared memory.
    """

    def __init__(self, memory: int) -> None:
        self._connection, there = Pipe()
        with there:
            numbers = (there.fileno(), memory)
            path = json.dumps([str(each) for each in sys.path])
            self.process = Popen(
                [sys.executable, "-P", "-c", _PROGRAM, path, *map(str, numbers)],
                stdin=DEVNULL,
                stdout=DEVNULL,
                pass_fds=(*numbers, *lifeline.descriptors()),
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def work(self, jobs: "SimpleQueue[Job | None]") -> None:
        """Hand jobs to the loader, one after the other, until there is None."""
        while (job := jobs.get()) is not None:
            request, answer = job
            if not answer.set_running_or_notify_cancel():
                continue
            error: Exception | None
            try:
                error = self._ask(request)
            except Exception as failure:
                error = failure
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)

    def gone(self) -> RunFailedError:
        """The error for a loader that ended."""
        with suppress(TimeoutExpired):
            self.process.wait(END_S)
        return RunFailedError(f"a loader of data is gone ({fate(self.process.returncode)})")

    def end(self) -> None:
        """End the process, and wait until it is gone."""
        self.process.kill()
        with suppress(TimeoutExpired):
            self.process.wait(END_S)

    def _ask(self, request: Request) -> PpllError | None:
        try:
            self._connection.send(request)
            self._await(request)
            answer: PpllError | None = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self.gone() from error
        return answer

    def _await(self, request: Request) -> None:
        """Wait for the answer. Time in which this process was stopped itself does not count."""
        waited_s = stopped_s = 0.0
        before_s = monotonic()
        while not self._connection.poll(LOOK_S):
            now_s = monotonic()
            passed_s = min(now_s - before_s, 2 * LOOK_S)
            before_s = now_s
            waited_s += passed_s
            stopped_s = stopped_s + passed_s if is_stopped(self.process.pid) else 0.0
            if stopped_s > STOPPED_LIMIT_S:
                self.end()
                raise RunFailedError("a loader of data was stopped (SIGSTOP)")
            if waited_s > ANSWER_LIMIT_S:
                self.end()
                where = f"{request.wanted[0].path} and what follows it"
                raise RunFailedError(
                    f"a loader of data did not answer for {waited_s:.0f} s, over {where}"
                )


def _end(loaders: Sequence[_Loader], jobs: "SimpleQueue[Job | None]", memory: SharedMemory) -> None:
    for loader in loaders:
        loader.process.kill()
    for loader in loaders:
        loader.end()
        jobs.put(None)
    memory.close()
