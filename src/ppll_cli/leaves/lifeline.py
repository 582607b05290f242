"""How a parent knows that the children of its workers are gone as well.

A worker has the only open end of the pipe to its parent, who takes it for gone when the pipe ends.
Processes that the worker starts hold the pipe open too, so it ends with the last of them. Imports
nothing heavy.
"""

from multiprocessing.connection import Connection
from weakref import WeakSet

_PIPES: "WeakSet[Connection]" = WeakSet()


def share(pipe: Connection) -> None:
    """Have processes that this one starts hold a pipe open."""
    _PIPES.add(pipe)


def descriptors() -> tuple[int, ...]:
    """What a process has to be given, to hold the pipes open."""
    return tuple(pipe.fileno() for pipe in _PIPES if not pipe.closed)
