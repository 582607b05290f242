"""Downloads that end: with the files, or with one error within half a minute."""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ppll_cli.data.files import Files
from ppll_cli.errors import ConfigError

SOCKET_TIMEOUT_S = 8.0
"""Limit of one connection attempt and of one read; torchvision sets none."""

FIRST_BYTE_S = 15.0
"""Limit until the first file appears: name servers and lists of addresses know no other limit."""

STALL_S = 120.0
"""Limit without a new byte afterwards: checking the sum of a large archive takes a while."""

Fetch = Callable[[Path], None]
"""Downloads the files of a data set into a folder."""


def provide(
    dataset: Files, files: Sequence[str], url: str, fetch: Fetch, *, everything: bool = False
) -> None:
    """Makes sure that files exist under a data set's folder, by a download where that is allowed.

    They are downloaded into a folder beside their place and moved when complete: an interrupted
    download leaves nothing that looks like data, and two runs that download do not meet.

    Args:
        dataset: Whose folder, permission and error message.
        files: Paths relative to the folder.
        url: Where a person would find them.
        fetch: Downloads at least these files.
        everything: What else was downloaded is moved as well, before these files: they stand for
            it, and where they are missing the rest is not thought complete.

    Raises:
        ConfigError: Files are missing and may not be, or could not be, downloaded.
    """
    folder = dataset.folder
    missing = [name for name in dict.fromkeys(files) if not (folder / name).is_file()]
    if not missing:
        return
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    lacking = f"no {missing[0]}{more} in {folder}"
    remedy = f"fetch {url} by hand, so that {folder / missing[0]} exists, or give another data.root"

    def refused(reason: str, first: str = "") -> ConfigError:
        return ConfigError("data.root", dataset.given_root, f"{lacking}, {reason}", first + remedy)

    if not dataset.download:
        raise refused("and data.download=false", "allow data.download=true, ")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # After a failure a thread may still write into it; what it leaves is not worth an error.
        with TemporaryDirectory(
            dir=folder, prefix=".download-", ignore_cleanup_errors=True
        ) as scratch:
            failure = _fetch_bounded(fetch, Path(scratch))
            if failure is not None:
                raise refused(f"and the download of {url} failed ({one_line(failure)})")
            for name in [*(_others(Path(scratch), missing) if everything else ()), *missing]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(scratch, name), folder / name)
    except OSError as error:
        raise refused(f"and it cannot be written ({one_line(error)})") from error


def _fetch_bounded(fetch: Fetch, folder: Path) -> Exception | None:
    """Runs a download; returns why it failed, or None.

    It runs in a daemon thread, which is left behind where it hangs: a look-up in the DNS cannot
    be interrupted, and must not hold up the exit either.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            fetch(folder)
        except Exception as error:  # reported to whoever waits
            failures.append(error)

    thread = threading.Thread(target=run, name="download", daemon=True)
    with _socket_timeout(SOCKET_TIMEOUT_S):
        thread.start()
        before, limit_s = 0, FIRST_BYTE_S
        while True:
            thread.join(limit_s)
            if not thread.is_alive():
                return failures[0] if failures else None
            size = _size_bytes(folder)
            if size == before:
                return TimeoutError(f"no data for {limit_s:g} s")
            before, limit_s = size, STALL_S


def _others(folder: Path, files: Sequence[str]) -> list[str]:
    """The files below a folder without these, relative to it."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [name for path in paths if (name := str(path.relative_to(folder))) not in files]


@contextmanager
def _socket_timeout(limit_s: float) -> Iterator[None]:
    """Sockets that are made meanwhile have this limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(limit_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _size_bytes(folder: Path) -> int:
    """Size of all files in a folder that another thread is writing to."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def one_line(error: Exception) -> str:
    """An error's message without line breaks and the angle brackets of urllib."""
    return " ".join(str(error).replace("<", "").replace(">", "").split()) or type(error).__name__
