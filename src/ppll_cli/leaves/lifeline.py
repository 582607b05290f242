"""Lets the parent notice when a worker and all processes that the worker started have ended.

Each worker has a pipe to its parent. Processes that the worker starts also keep the worker's end of
this pipe open. So the parent sees the end of the pipe only when the last of these processes has
ended. Imports no torch.
"""

from multiprocessing.connection import Connection
from weakref import WeakSet

_PIPES: "WeakSet[Connection]" = WeakSet()


def share(pipe: Connection) -> None:
    """Register a worker's pipe to its parent for `descriptors`."""
    _PIPES.add(pipe)


def descriptors() -> tuple[int, ...]:
    """Return the file descriptors of the registered pipes; a new process must inherit them."""
    return tuple(pipe.fileno() for pipe in _PIPES if not pipe.closed)
