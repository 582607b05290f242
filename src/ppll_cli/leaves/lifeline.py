"""Lets a worker's parent notice when the worker and all processes that it started have ended.

Each worker has a pipe to its parent. Processes that the worker starts inherit the worker's end of
this pipe. The pipe is closed when the last of these processes ends. Imports no torch.
"""

from multiprocessing.connection import Connection
from weakref import WeakSet

_PIPES: "WeakSet[Connection]" = WeakSet()


def share(pipe: Connection) -> None:
    """Register this worker's pipe to its parent, so that `descriptors` returns it."""
    _PIPES.add(pipe)


def descriptors() -> tuple[int, ...]:
    """Return the file descriptors that a process started by this worker must inherit."""
    return tuple(pipe.fileno() for pipe in _PIPES if not pipe.closed)
