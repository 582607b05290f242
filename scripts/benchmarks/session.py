"""A run in a session of its own, seen from outside: its processes, and what it leaves behind.

Everything is read from /proc: multiprocessing gives workers no names that other processes see.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self

from ppll_cli.transport.memory import SHARED_MEMORY

LIMIT_S = 120.0
"""How long anything may take that is waited for."""

LEAVE_S = 10.0
"""How long what a run leaves behind may take to be gone."""

LOOK_S = 0.005


@dataclass(frozen=True)
class Process:
    """A process that exists.

    Attributes:
        pid: Its number.
        parent: Its parent's.
        started: When it was started, in ticks since the machine was.
        command: Its command line.
    """

    pid: int
    parent: int
    started: int
    command: str


class Session:
    """A program in a session of its own; a context manager that leaves no process of it behind.

    Args:
        command: The program and its arguments.
        output: The file that takes what it prints.
        environment: Added to this process's.

    Attributes:
        started_s: When it was started, of the monotonic clock.
    """

    def __init__(
        self, command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.output = output
        self._before = names_in_shared_memory()
        with output.open("wb") as file:
            self.started_s = monotonic()
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for process in self.processes():
            _send(process.pid, signal.SIGKILL)
        self._popen.wait(LIMIT_S)

    @property
    def pid(self) -> int:
        """Of the program that was started."""
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """Its exit status, a signal's number below zero, or None while it runs."""
        return self._popen.poll()

    def printed(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def processes(self) -> list[Process]:
        """All that live, in the order in which they were started."""
        return sorted(_of_session(self.pid), key=lambda process: (process.started, process.pid))

    def server(self) -> Process | None:
        """The fork server."""
        ours = (each for each in self.processes() if each.parent == self.pid)
        return next((each for each in ours if "multiprocessing.forkserver" in each.command), None)

    def workers(self) -> list[Process]:
        """The workers, in the order of their stages: they are forked one after another."""
        server = self.server()
        return [] if server is None else [p for p in self.processes() if p.parent == server.pid]

    def signal(self, number: signal.Signals, *pids: int) -> float:
        """Send a signal to some of its processes; the time of the monotonic clock then."""
        now = monotonic()
        for pid in pids:
            _send(pid, number)
        return now

    def wait(self, limit_s: float = LIMIT_S) -> int | None:
        """Wait for its end; its exit status, or None if it has not ended by then."""
        with suppress(subprocess.TimeoutExpired):
            return self._popen.wait(limit_s)
        return None

    def wait_until(
        self, condition: Callable[[], bool], limit_s: float = LIMIT_S, look_s: float = LOOK_S
    ) -> bool:
        """Wait until something is the case; whether it is before the program's end."""
        end_s = monotonic() + limit_s
        while self.status is None and monotonic() < end_s:
            if condition():
                return True
            sleep(look_s)
        return False

    def left(self) -> list[str]:
        """What is still there some time after its end: processes, and names in shared memory."""
        end_s = monotonic() + LEAVE_S
        while True:
            left = [f"process {each.pid}: {each.command}" for each in self.processes()]
            left += [f"{SHARED_MEMORY / name}" for name in _unused(self._before)]
            if not left or monotonic() > end_s:
                return left
            sleep(10 * LOOK_S)  # it reads all of /proc


def ppll_run(*arguments: str) -> list[str]:
    """The command that runs ppll-run with these arguments."""
    return [sys.executable, "-m", "ppll_cli", *arguments]


def names_in_shared_memory() -> set[str]:
    """What is there, but semaphores: ours lose their names at once, joblib's belong to a sweep."""
    with suppress(OSError):
        return {name for name in os.listdir(SHARED_MEMORY) if not name.startswith("sem.")}
    return set()


def _unused(before: set[str]) -> set[str]:
    """New names in shared memory that no process uses: others may run beside this one."""
    found = names_in_shared_memory() - before
    return found - _used(found) if found else found


def _used(names: set[str]) -> set[str]:
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended, or is somebody else's
            text = maps.read_text(errors="replace")
            used |= {name for name in names if f"{SHARED_MEMORY}/{name}" in text}
    return used


def _of_session(session: int) -> Iterator[Process]:
    """Its processes; what has ended, and only waits to be reaped, is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            state, parent, its_session, started = fields[0], fields[1], fields[3], fields[19]
            if int(its_session) == session and state not in "ZX":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield Process(int(folder.name), int(parent), int(started), command.strip())


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
