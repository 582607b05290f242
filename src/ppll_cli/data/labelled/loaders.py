"""Starts and controls loaders, child processes that decode pictures in the background."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from mmap import ALLOCATIONGRANULARITY, mmap
from multiprocessing.connection import Pipe
from multiprocessing.util import Finalize
from queue import SimpleQueue
from subprocess import DEVNULL, Popen, TimeoutExpired
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.labelled.loader import Request, Wanted, image_of
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
"""Time limit of a request in seconds, for slow disks and networks."""

END_S = 5.0
"""Time limit in seconds for the end of a killed loader."""

_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from ppll_cli.data.labelled.loader import main; main(*map(int, sys.argv[2:]))"
)


class Loaders:
    """Child processes that decode pictures. Several threads may use this object.

    On Linux the processes are killed when the thread that created this object ends, so this thread
    must run as long as the loaders are needed. `side` is height and width of the images, in pixels.
    """

    def __init__(self, count: int, side: int) -> None:
        self._side = side
        self.memory = SharedMemory()
        self._loaders = [_Loader(self.memory.descriptor) for _ in range(count)]
        self._idle: SimpleQueue[_Loader] = SimpleQueue()
        for loader in self._loaders:
            self._idle.put(loader)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="loader")
        # `close` also runs when this object is freed, so the threads hold no reference to it.
        ends = (self._loaders, self._threads, self.memory)
        self.close = Finalize(self, _end, ends, exitpriority=10)

    @property
    def processes(self) -> list[Popen[bytes]]:
        """The processes of the loaders."""
        return [loader.process for loader in self._loaders]

    def begin(self, wanted: Sequence[Wanted]) -> "Loading":
        """Start to decode pictures, and return before they are decoded."""
        image_bytes = 3 * self._side**2
        region = self.memory.take(len(wanted) * image_bytes)
        at_once = min(MOST_AT_ONCE, ceil(len(wanted) / len(self._loaders)))
        answers = []
        for first in range(0, len(wanted), at_once):
            offset = region.offset + first * image_bytes
            request = Request(tuple(wanted[first : first + at_once]), self._side, offset)
            answers.append(self._threads.submit(_answered, request, self._idle))
        return Loading(answers, self.memory, region, (len(wanted), 3, self._side, self._side))


@dataclass(frozen=True)
class Loading:
    """Pictures that are being decoded into a region of shared memory, with a future per request."""

    answers: Sequence[Future[None]]
    memory: "SharedMemory"
    region: "Region"
    shape: tuple[int, ...]

    def images(self) -> NDArray[np.uint8]:
        """Wait for the images, and return them, uint8 [N, 3, side, side], valid until `release`.

        Raises:
            ConfigError: A file cannot be read as a picture.
            RunFailedError: A loader has ended, was stopped, or does not answer.
        """
        for answer in self.answers:
            answer.result()  # every request has a time limit
        pixels = np.frombuffer(self.region.view, np.uint8, int(np.prod(self.shape)))
        return pixels.reshape(self.shape)

    def release(self) -> None:
        """Cancel requests that have not begun, wait for the others, and free the memory."""
        for answer in self.answers:
            if not answer.cancel():
                answer.exception()
        self.memory.give_back(self.region)


Key = TypeVar("Key", bound=Hashable)


class DecodedAhead(Generic[Key]):
    """The batches that loaders are decoding. Only one thread may use this object."""

    def __init__(self, begin: Callable[[Key], Loading]) -> None:
        self._begin, self._begun = begin, dict[Key, Loading]()

    @contextmanager
    def images(self, keys: Sequence[Key]) -> Iterator[NDArray[np.uint8]]:
        """Provide the images of the batch with the first key, uint8 [N, 3, side, side].

        Meanwhile loaders decode the batches with the other keys. A batch that was begun earlier is
        dropped if its key is not in `keys`.
        """
        for key in [key for key in self._begun if key not in keys]:
            self._begun.pop(key).release()
        for key in keys:
            if key not in self._begun:
                self._begun[key] = self._begin(key)
        loading = self._begun.pop(keys[0])
        try:
            yield loading.images()
        finally:
            loading.release()


def images_of(
    wanted: Sequence[Wanted], side: int, processes: int
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield arrays with the images of pictures. Each array is valid until the next one is yielded.

    Up to `_FEW` pictures are decoded by this process itself; each array is one image,
    uint8 [3, side, side]. More pictures are decoded by loaders; each array has up to `_BATCH`
    images, uint8 [n, 3, side, side].
    """
    if len(wanted) <= _FEW:
        yield from (image_of(each, side) for each in wanted)
        return
    starts = range(0, len(wanted), _BATCH)
    with closing(Loaders(processes, side)) as loaders:
        ahead = DecodedAhead[int](lambda first: loaders.begin(wanted[first : first + _BATCH]))
        for number in range(len(starts)):
            with ahead.images(starts[number : number + 2]) as images:
                yield images


class Region:
    """A region of the shared memory, mapped into this process as `view`.

    Its offset in the shared memory, and its size, are in bytes.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self.offset, self.view = offset, mmap(descriptor, size, offset=offset)


class SharedMemory:
    """Memory that processes share: a file without a name, which grows as needed."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.fdopen(os.memfd_create("ppll-pictures"), "r+b")
        else:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open until `close`
        self._size = 0
        self._free: dict[int, list[Region]] = {}
        self._lock = Lock()

    @property
    def descriptor(self) -> int:
        """File descriptor of the memory."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file; regions remain valid until they are freed."""
        self._file.close()

    def take(self, size: int) -> Region:
        """Return a free region of at least `size` bytes; extend the memory if there is none."""
        whole = ceil(size / ALLOCATIONGRANULARITY) * ALLOCATIONGRANULARITY
        with self._lock:
            if free := self._free.get(whole):
                return free.pop()
            offset, self._size = self._size, self._size + whole
            os.ftruncate(self.descriptor, self._size)
            return Region(self.descriptor, offset, whole)

    def give_back(self, region: Region) -> None:
        """Mark a region as free."""
        with self._lock:
            self._free.setdefault(len(region.view), []).append(region)


class _Loader:
    """The process of a loader, which writes images to the file descriptor `memory`."""

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

    def end(self) -> None:
        self.process.kill()
        with suppress(TimeoutExpired):
            self.process.wait(END_S)

    def ask(self, request: Request) -> None:
        """Send a request and wait for the answer.

        Raises:
            ConfigError: A file cannot be read as a picture.
            RunFailedError: The loader has ended, was stopped, or does not answer.
        """
        connection, number = self._connection, self.process.pid
        try:
            connection.send(request)
            problem = why_silent(connection.poll, lambda: is_stopped(number), ANSWER_LIMIT_S)
            failure: PpllError | None = None if problem else connection.recv()
        except (EOFError, OSError) as error:
            with suppress(TimeoutExpired):
                self.process.wait(END_S)
            how = how_ended(self.process.returncode)
            raise RunFailedError(f"a data loader is gone ({how})") from error
        if problem:
            self.end()
            where = f"{request.wanted[0].path} and the files after it"
            raise RunFailedError(f"a data loader {problem} while it read {where}")
        if failure is not None:
            raise failure


def _answered(request: Request, idle: "SimpleQueue[_Loader]") -> None:
    """Pass a request to an idle loader, and wait for the answer."""
    loader = idle.get()  # there are as many threads as loaders
    try:
        loader.ask(request)
    finally:
        idle.put(loader)


def _end(loaders: Sequence[_Loader], threads: ThreadPoolExecutor, memory: SharedMemory) -> None:
    """End the loaders; unfinished requests fail."""
    for loader in loaders:
        loader.end()
    threads.shutdown(wait=False, cancel_futures=True)
    memory.close()
