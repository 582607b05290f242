"""Temporary folders of this process. If the process is killed, a later process removes them.

A process owns a folder such as `TMPDIR/ppll-run-UID/HOST-RANDOM/`. While the process lives, it
locks the file `HOST-RANDOM.lock` beside the folder. Imports no torch.
"""

import fcntl
import os
import secrets
import shutil
import socket
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

from ppll_cli.errors import ConfigError

LONGEST_FOLDER = 85
"""Largest length, in bytes, of the path of a folder for sockets.

The path of a socket may have at most 107 bytes on Linux and 103 on macOS, and multiprocessing adds
18 bytes to the folder.
"""

SHORT_PLACES = ("/tmp", "/var/tmp")
"""Folders to use for sockets if the path of the temporary folder is too long."""

SHARED_MEMORY = Path("/dev/shm")

_ATTEMPTS = 10


@dataclass(frozen=True)
class _Own:
    folder: Path
    descriptor: int  # file descriptor of the open lock file
    process_id: int  # process ID of the owner; a forked child must not remove the folder

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")


_OWN: dict[Path, _Own] = {}
"""The folders of this process, by the temporary folder that contains them."""


@contextmanager
def scratch(place: Path | None = None) -> Iterator[Path]:
    """Provide a new folder for files; it is removed after the body of the `with`.

    The folder is created inside `place`, by default in `TMPDIR`.

    Raises:
        ConfigError: No temporary folder can be created.
    """
    owned = _own(place or _place())
    with tempfile.TemporaryDirectory(dir=owned, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def shared_scratch() -> AbstractContextManager[Path]:
    """Provide a folder as `scratch` does, but in shared memory if this process can write there.

    Raises:
        ConfigError: No temporary folder can be created.
    """
    return scratch(SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else None)


def lasting_folder() -> Path:
    """Return a folder for files, in `TMPDIR`, that exists until this process ends.

    Raises:
        ConfigError: No temporary folder can be created.
    """
    return _own(_place())


def socket_folder() -> Path:
    """Return a folder with a path short enough for sockets; it exists until this process ends.

    Raises:
        ConfigError: No such folder can be created.
    """
    place = _place()
    # `_claim` removes leftovers only in the place where it creates a folder. Few processes create
    # one in shared memory, so leftovers in shared memory are removed here.
    _clear(SHARED_MEMORY / f"ppll-run-{os.getuid()}")
    for short in (place, *map(Path, SHORT_PLACES)):
        if len(os.fsencode(short / f"ppll-run-{os.getuid()}" / _name())) > LONGEST_FOLDER:
            continue
        with suppress(ConfigError):
            return _own(short)
    raise ConfigError(
        "TMPDIR", place, "no folder for sockets can be made there", "set TMPDIR to a short path"
    )


def remove() -> None:
    """Remove the folders of this process. A signal handler may call this right before the exit."""
    while _OWN:
        _, own = _OWN.popitem()
        if own.process_id != os.getpid():
            continue
        shutil.rmtree(own.folder, ignore_errors=True)
        with suppress(OSError):
            own.lock.unlink(missing_ok=True)
            os.close(own.descriptor)
            own.folder.parent.rmdir()  # fails while other processes have folders there


def _place() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        given = os.environ.get("TMPDIR", "")
        problem = "no folder for temporary files can be written to"
        remedy = "set TMPDIR to a folder with free space"
        raise ConfigError("TMPDIR", given, problem, remedy) from None


def _own(place: Path) -> Path:
    if (own := _OWN.get(place)) is None or own.process_id != os.getpid():
        try:
            own = _claim(place)
        except OSError as error:
            problem = f"no temporary folder can be made there: {error.strerror or error}"
            raise ConfigError("TMPDIR", place, problem, "set TMPDIR to another folder") from None
        if not _OWN:
            # At the exit, `remove` runs after multiprocessing has removed its own sockets.
            Finalize(None, remove, exitpriority=-100)
        _OWN[place] = own
    return own.folder


def _base(place: Path) -> Path:
    base = place / f"ppll-run-{os.getuid()}"
    with suppress(FileExistsError):
        base.mkdir(mode=0o700)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix=f"{base.name}-", dir=place))  # the name is in use
    if found.st_mode & 0o077:
        base.chmod(0o700)
    return base


def _claim(place: Path) -> _Own:
    for _ in range(_ATTEMPTS):
        base = _base(place)
        _clear(base)
        folder = base / _name()
        lock = folder.with_name(f"{folder.name}.lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except (FileExistsError, FileNotFoundError):  # the name is in use, or the base was removed
            continue
        with suppress(FileNotFoundError):  # another process removed the file before it was locked
            if _locked(descriptor) is not False and os.path.samestat(
                os.fstat(descriptor), lock.lstat()
            ):
                folder.mkdir(mode=0o700)
                return _Own(folder, descriptor, os.getpid())
        os.close(descriptor)
    raise FileExistsError(f"other processes keep changing {place}")


def _clear(base: Path) -> None:
    for lock in base.glob(f"{_host()}-*.lock"):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _locked(descriptor):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                with suppress(OSError):
                    lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # another process has locked the file
    except OSError:
        return None  # it is unknown whether another process uses the file
    return True


def _name() -> str:
    return f"{_host()}-{secrets.token_hex(4)}"


def _host() -> str:
    # Part of each name: machines may share a folder, but do not see the locks of one another.
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"
