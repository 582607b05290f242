"""Files on their way between two machines that share no folder.

They go in pieces, raw bytes, through the store at which the launchers meet. The pieces of all files
are numbered through, and an empty one ends each file: both machines name the files, whichever of
them sends, in the same order. Who reads a piece deletes it, and who sends is only a few pieces
ahead of that, so that the store never holds much. There is a thread for this and a connection to
the store, because no sign of life may wait behind a file.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Protocol

from ppll_cli.errors import RunFailedError
from ppll_cli.job.manifest import SavedFile
from ppll_cli.leaves.files import make_folder

PIECE_BYTES = 1 << 20
"""The store of torch.distributed takes up to 8 MiB at once."""

AHEAD = 8
"""So many pieces may be in the store."""

STALLED_S = 120.0
"""How long the other machine may take for a piece, while it lives: it may have a slow disk."""

LOOK_S = 0.01


class _ParcelError(Exception):
    """Raised when a file does not get through."""


class Store(Protocol):
    """What is used of a store of torch.distributed."""

    def set(self, key: str, value: Any, /) -> None:
        """Note a value."""

    def get(self, key: str, /) -> bytes:
        """The value that was noted."""

    def check(self, keys: list[str], /) -> bool:
        """Whether there are values for all these keys."""

    def delete_key(self, key: str, /) -> bool:
        """Forget a value."""


class Parcels:
    """Sends files to another machine and takes files from it, one after another.

    Args:
        connect: Opens a connection to a store in which these two alone use the keys.
        name: Of the other machine, for the user.
    """

    def __init__(self, connect: Callable[[], Store], name: str) -> None:
        self._connect, self._name = connect, name
        self._piece = 0  # the next one's number
        self._tasks: SimpleQueue[tuple[str, Callable[[Store], None]]] = SimpleQueue()
        self._problem = ""
        self._ended = Event()
        self._thread = Thread(target=self._work, name="ppll-parcels", daemon=True)
        self._thread.start()

    def send(self, path: Path, remove: bool = False) -> Event:
        """Send a file.

        Args:
            path: Where it is.
            remove: It is not needed here any more then.

        Returns:
            Is set once the store has had all of it.
        """
        sent = Event()

        def task(store: Store) -> None:
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    self._put(store, piece)
            self._put(store, b"")
            if remove:
                path.unlink()
            sent.set()

        self._tasks.put((f"{path} cannot be sent to {self._name}", task))
        return sent

    def take(self, file: SavedFile, folder: Path) -> Event:
        """Take the next file that the other machine sends.

        Args:
            file: What it must be.
            folder: Where it is written; is made where it is missing.

        Returns:
            Is set once the file is there and has been found to be that.
        """
        path, there = folder / Path(file.name).name, Event()

        def task(store: Store) -> None:
            make_folder(folder)
            path.unlink(missing_ok=True)  # it may be a link
            size_bytes, digest = 0, hashlib.sha256()
            with path.open("wb") as written:
                for piece in self._pieces(store):
                    written.write(piece)
                    digest.update(piece)
                    size_bytes += len(piece)
                written.flush()
                os.fsync(written.fileno())
            if (size_bytes, digest.hexdigest()) != (file.size_bytes, file.sha256):
                raise _ParcelError(
                    f"it came damaged: {size_bytes} bytes with SHA-256 {digest.hexdigest()} "
                    f"instead of {file.size_bytes} with {file.sha256}"
                )
            there.set()

        self._tasks.put((f"{path} cannot be taken from {self._name}", task))
        return there

    def check(self) -> None:
        """Raise what has gone wrong.

        Raises:
            RunFailedError: A file cannot be sent or taken; those after it are not.
        """
        if self._problem:
            raise RunFailedError(self._problem)

    def close(self) -> None:
        """Give up what is still on its way."""
        self._ended.set()
        self._tasks.put(("", lambda _: None))  # it may be waiting for one
        self._thread.join(2.0)  # not longer: the store may be out of reach

    # Everything below is done by the thread.

    def _work(self) -> None:
        store: Store | None = None
        failing, task = self._tasks.get()
        while not self._ended.is_set():
            try:
                store = store or self._connect()
                task(store)
            except Exception as error:  # of the file system, the store or the other machine
                said = str(error) or repr(error)
                self._problem = f"{failing}: {said.splitlines()[0]}"
                return
            failing, task = self._tasks.get()

    def _put(self, store: Store, piece: bytes) -> None:
        """Put a piece into the store as soon as there is room."""
        self._wait(store, self._piece - AHEAD, there=False)
        store.set(str(self._piece), piece)
        self._piece += 1

    def _pieces(self, store: Store) -> Iterator[bytes]:
        """The pieces of the next file."""
        piece = b"some"
        while piece:
            self._wait(store, self._piece, there=True)
            piece = store.get(str(self._piece))
            store.delete_key(str(self._piece))
            self._piece += 1
            yield piece

    def _wait(self, store: Store, piece: int, there: bool) -> None:
        """Wait until a piece is there, or is not there any more."""
        waited_s, looked_s = 0.0, time.monotonic()
        while store.check([str(piece)]) != there:
            if self._ended.wait(LOOK_S):
                raise _ParcelError("it was given up")
            now_s = time.monotonic()
            waited_s += min(now_s - looked_s, 1.0)  # this machine may have been suspended
            looked_s = now_s
            if waited_s > STALLED_S:
                what = "came" if there else "was read"
                raise _ParcelError(f"nothing {what} for {STALLED_S:.0f} s")
