"""Downloads the files of data sets. A download without progress ends with an error."""

import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ppll_cli.data.files import Files
from ppll_cli.errors import ConfigError

SOCKET_TIMEOUT_S = 8.0
"""Time limit in seconds of each connection attempt and each read; torchvision sets none."""

FIRST_BYTE_S = 15.0
"""Time limit in seconds until the first byte. In this time the name of the server is looked up, and
several addresses may be tried.
"""

STALL_S = 120.0
"""After the first byte, new bytes must arrive in each period of this many seconds. The period is
long, because no bytes arrive while a checksum is computed."""

Fetch = Callable[[Path], None]
"""A function that downloads files of a data set into a folder."""


def provide(
    dataset: Files, files: Sequence[str], url: str, fetch: Fetch, *, everything: bool = False
) -> None:
    """Make sure that a data set's files exist; download missing files if allowed.

    New files appear in the data set's folder only when all are complete. So an interrupted download
    leaves no incomplete data, and two runs can download at the same time.

    Args:
        dataset: The data set's settings.
        files: Paths of the files that must exist, relative to the data set's folder.
        url: Where users can get the files themselves; for error messages.
        fetch: Downloads at least the missing files.
        everything: Whether to keep additional files that `fetch` downloads.

    Raises:
        ConfigError: Files are missing, and downloading them failed or is not allowed, or the data
            set's folder cannot be written to.
    """
    folder = dataset.folder
    missing = [name for name in dict.fromkeys(files) if not (folder / name).is_file()]
    if not missing:
        return
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    lacking = f"no {missing[0]}{more} {'there' if dataset.root else f'in {folder}'}"
    remedy = f"fetch {url} by hand, so that {folder / missing[0]} exists, or give another data.root"

    def refused(reason: str, first: str = "") -> ConfigError:
        return ConfigError("data.root", dataset.given_root, f"{lacking}, {reason}", first + remedy)

    if not dataset.download:
        raise refused("and data.download=false", "allow data.download=true, ")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # After a time-out the thread may still write to the folder, so removing it may fail.
        with TemporaryDirectory(
            dir=folder, prefix=".download-", ignore_cleanup_errors=True
        ) as scratch:
            failure = _fetch_bounded(fetch, Path(scratch))
            if failure is not None:
                raise refused(f"and the download of {url} failed ({one_line(failure)})")
            paths = Path(scratch).rglob("*") if everything else ()
            fetched = {str(path.relative_to(scratch)) for path in paths if path.is_file()}
            # The missing files come last: a later run that finds them knows that all are complete.
            for name in [*(fetched - {*missing}), *missing]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(scratch, name), folder / name)
    except OSError as error:
        raise refused(f"and the folder cannot be written to ({one_line(error)})") from error


def _fetch_bounded(fetch: Fetch, folder: Path) -> Exception | None:
    failures: list[Exception] = []

    def run() -> None:
        try:
            fetch(folder)
        except Exception as error:  # the calling thread returns the exception
            failures.append(error)

    thread = threading.Thread(target=run, name="download", daemon=True)
    usual_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_TIMEOUT_S)
    try:
        thread.start()
        before, limit_s = 0, FIRST_BYTE_S
        while True:
            thread.join(limit_s)
            if not thread.is_alive():
                return failures[0] if failures else None
            size = _size_bytes(folder)
            if size == before:
                # The thread continues, because a name lookup cannot be interrupted. As a daemon
                # thread, it does not delay the exit of the process.
                return TimeoutError(f"no data for {limit_s:g} s")
            before, limit_s = size, STALL_S
    finally:
        socket.setdefaulttimeout(usual_s)


def _size_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # the download has just renamed or removed the file
            continue
    return total


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks and without urllib's angle brackets.

    If the error has no message, return the name of its type.
    """
    return " ".join(str(error).replace("<", "").replace(">", "").split()) or type(error).__name__
