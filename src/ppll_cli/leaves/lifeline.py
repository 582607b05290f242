"""Lets a parent know that the children of its workers are gone as well.

Each worker holds the only open end of a pipe to its parent, and the parent takes the worker for
gone when the pipe ends. Processes that the worker starts hold the pipe open too, so the pipe ends
with the last of them. Imports no torch.
"""

from multiprocessing.connection import Connection
from weakref import WeakSet

_PIPES: "WeakSet[Connection]" = WeakSet()


def share(pipe: Connection) -> None:
    """Have processes that this one starts hold a pipe open."""
    _PIPES.add(pipe)


def descriptors() -> tuple[int, ...]:
    """Return the descriptors to give to a new process so that it holds the pipes open."""
    return tuple(pipe.fileno() for pipe in _PIPES if not pipe.closed)
