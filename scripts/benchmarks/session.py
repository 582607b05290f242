"""Runs a program in its own session, and observes its processes and what remains after its end.

/proc says which processes belong to the session and what they are, because multiprocessing gives
workers no telling names.
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

from ppll_cli.leaves.scratch import SHARED_MEMORY

LIMIT_S = 120.0

LEAVE_S = 10.0
"""After a program's end, its processes must end and free shared memory within these seconds."""

LOOK_S = 0.005


@dataclass(frozen=True)
class Process:
    """A running process. `started` is in clock ticks since the machine was started."""

    pid: int
    parent: int
    started: int
    command: str


class Session:
    """Runs a program in its own session, and kills all its processes at the end of a `with` block.

    The program's output goes to the file `output`. `environment` has further environment variables.
    `started_s` is the time of the start on the monotonic clock.
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
        """The process id of the program."""
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """The exit status, or minus the number of the signal that killed it; None while it runs."""
        return self._popen.poll()

    def printed(self) -> str:
        """Return the program's output so far."""
        return self.output.read_text(errors="replace")

    def processes(self) -> list[Process]:
        """Return the live processes of the session, in the order of their start."""
        return sorted(_of_session(self.pid), key=lambda process: (process.started, process.pid))

    def server(self) -> Process | None:
        """Return the program's fork server; None if there is none."""
        ours = (each for each in self.processes() if each.parent == self.pid)
        return next((each for each in ours if "multiprocessing.forkserver" in each.command), None)

    def workers(self) -> list[Process]:
        """Return the workers in the order of stages, which is the order of their start."""
        server = self.server()
        return [] if server is None else [p for p in self.processes() if p.parent == server.pid]

    def signal(self, number: signal.Signals, *pids: int) -> float:
        """Send a signal to processes, and return the time on the monotonic clock."""
        now = monotonic()
        for pid in pids:
            _send(pid, number)
        return now

    def wait(self, limit_s: float = LIMIT_S) -> int | None:
        """Wait for the program's end; return its exit status, or None after the time limit."""
        with suppress(subprocess.TimeoutExpired):
            return self._popen.wait(limit_s)
        return None

    def wait_until(
        self, condition: Callable[[], bool], limit_s: float = LIMIT_S, look_s: float = LOOK_S
    ) -> bool:
        """Wait for a condition; return False if the program or the time limit ends first."""
        end_s = monotonic() + limit_s
        while self.status is None and monotonic() < end_s:
            if condition():
                return True
            sleep(look_s)
        return False

    def left(self) -> list[str]:
        """Return the processes of the session that still exist `LEAVE_S` seconds after this call.

        Also return new names in shared memory that no process uses. Return an empty list as soon as
        neither exists any more.
        """
        end_s = monotonic() + LEAVE_S
        while True:
            left = [f"process {each.pid}: {each.command}" for each in self.processes()]
            left += [f"{SHARED_MEMORY / name}" for name in _unused(self._before)]
            if not left or monotonic() > end_s:
                return left
            sleep(10 * LOOK_S)  # a longer pause, because each check reads all of /proc


def ppll_run(*arguments: str) -> list[str]:
    """Return the command that runs ppll-run with these arguments."""
    return [sys.executable, "-m", "ppll_cli", *arguments]


def let_sessions_be_interrupted() -> None:
    """Let the programs of sessions react to SIGINT even if this program was started to ignore it.

    Shells without job control start programs in the background with SIGINT ignored. A program
    passes this on to the programs that it starts, unless it has a handler for SIGINT. So this
    function installs a handler, which does nothing.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


def names_in_shared_memory() -> set[str]:
    """Return all names in shared memory, except semaphores."""
    with suppress(OSError):
        return {name for name in os.listdir(SHARED_MEMORY) if not name.startswith("sem.")}
    return set()


def _unused(before: set[str]) -> set[str]:
    # Return new names in shared memory that no process uses.
    found = names_in_shared_memory() - before
    return found - _used(found) if found else found


def _used(names: set[str]) -> set[str]:
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            text = maps.read_text(errors="replace")
            used |= {name for name in names if f"{SHARED_MEMORY}/{name}" in text}
    return used


def _of_session(session: int) -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            state, parent, its_session, started = fields[0], fields[1], fields[3], fields[19]
            if int(its_session) == session and state not in "ZX":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield Process(int(folder.name), int(parent), int(started), command.strip())


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
