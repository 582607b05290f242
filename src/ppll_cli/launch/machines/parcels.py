"""Transfers of files between two machines that share no folder.

A file travels in pieces through the store at which the launchers meet. An empty piece ends each
file, and the receiver deletes each piece that it has read. Pieces are numbered across all files, in
both directions, so both machines must start the transfers in the same order. A separate thread
transfers the files, so that the launcher can send signs of life meanwhile.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from ppll_cli.errors import RunFailedError
from ppll_cli.job.manifest import SavedFile
from ppll_cli.leaves.files import make_folder

PIECE_BYTES = 1 << 20
"""Size of a piece in bytes; the store of torch.distributed accepts at most 8 MiB."""

AHEAD = 8
"""Largest number of pieces that are in the store at a time."""

STALLED_S = 120.0
"""Seconds that the other machine may take to send or read a piece: its disk may be slow."""

LOOK_S = 0.01  # seconds between two checks whether the store has a piece

Store = Any
"""Type of torch's stores; `Any`, because torch's type stubs are incomplete."""


class Parcels:
    """Sends files to another machine and receives files from it, one after another.

    Args:
        connect: Opens a connection to the store, with keys that only these two machines use.
        name: The other machine's name in error messages.
    """

    def __init__(self, connect: Callable[[], Store], name: str) -> None:
        self._connect, self._name = connect, name
        self._piece = 0  # number of the next piece
        self._tasks: SimpleQueue[tuple[str, Callable[[Store], None]]] = SimpleQueue()
        self._problem = ""
        self._ended = Event()
        self._thread = Thread(target=self._work, name="ppll-parcels", daemon=True)
        self._thread.start()

    def send(self, path: Path, remove: bool = False) -> Event:
        """Send a file, and then delete it if `remove` is true.

        Return an event that is set when all its pieces are in the store.
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
        """Receive the next file into a folder, and check its size and digest.

        Return an event that is set when the file is complete and correct.
        """
        path, there = folder / Path(file.name).name, Event()

        def task(store: Store) -> None:
            make_folder(folder)
            path.unlink(missing_ok=True)  # if it is a link, its target must not be overwritten
            size_bytes, digest = 0, hashlib.sha256()
            with path.open("wb") as written:
                for piece in self._pieces(store):
                    written.write(piece)
                    digest.update(piece)
                    size_bytes += len(piece)
                written.flush()
                os.fsync(written.fileno())
            if (size_bytes, digest.hexdigest()) != (file.size_bytes, file.sha256):
                raise RuntimeError(
                    f"it arrived damaged: {size_bytes} bytes with SHA-256 {digest.hexdigest()} "
                    f"instead of {file.size_bytes} with {file.sha256}"
                )
            there.set()

        self._tasks.put((f"{path} cannot be received from {self._name}", task))
        return there

    def check(self) -> None:
        """If a transfer has failed, raise RunFailedError. No transfer starts after a failed one."""
        if self._problem:
            raise RunFailedError(self._problem)

    def close(self) -> None:
        """Cancel the transfers that have not ended."""
        self._ended.set()
        self._tasks.put(("", lambda _: None))  # wake the thread if it waits for a task
        self._thread.join(2.0)  # it may hang if the store is unreachable

    # The thread runs the methods below.

    def _work(self) -> None:
        store: Store | None = None
        failing, task = self._tasks.get()
        while not self._ended.is_set():
            try:
                store = store or self._connect()
                task(store)
            except Exception as error:  # raised by the file system, the store or this class
                said = str(error) or repr(error)
                self._problem = f"{failing}: {said.splitlines()[0]}"
                return
            failing, task = self._tasks.get()

    def _put(self, store: Store, piece: bytes) -> None:
        self._wait(store, self._piece - AHEAD, there=False)
        store.set(str(self._piece), piece)
        self._piece += 1

    def _pieces(self, store: Store) -> Iterator[bytes]:
        piece = b"some"
        while piece:
            self._wait(store, self._piece, there=True)
            piece = store.get(str(self._piece))
            store.delete_key(str(self._piece))
            self._piece += 1
            yield piece

    def _wait(self, store: Store, piece: int, there: bool) -> None:
        waited_s, looked_s = 0.0, time.monotonic()
        while store.check([str(piece)]) != there:
            if self._ended.wait(LOOK_S):
                raise RuntimeError("the transfer was cancelled")
            now_s = time.monotonic()
            # If this process was paused (SIGSTOP, or sleep of the machine), count at most 1 s.
            waited_s += min(now_s - looked_s, 1.0)
            looked_s = now_s
            if waited_s > STALLED_S:
                what = "came" if there else "was read"
                raise RuntimeError(f"nothing {what} for {STALLED_S:.0f} s")
