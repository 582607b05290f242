"""A worker of this machine as the launcher sees it: its process, its reports and its death."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from ppll_cli.job.job import Job
from ppll_cli.job.links import ChannelEnds, Links, Recovery, StopFlag
from ppll_cli.launch.machines.others import Report, Seen
from ppll_cli.leaves import forkserver
from ppll_cli.transport.memory import remove_left
from ppll_cli.worker import process

LEAVE_S = 5.0
"""Seconds to wait for the exit of a worker's process that is done, killed or dying."""


@dataclass(kw_only=True)
class Watched(Seen):
    """A worker of this machine.

    Attributes:
        ends: The worker's ends of channels. The launcher also keeps them open. So if this worker
            dies, the other workers do not notice, and a new process can use the same ends.
        stop: The flag that stops the workers of this machine.
        process: The worker's current process; set by `begin`.
        reports: The connection from which the launcher reads the worker's reports.
        failed: Whether the current process has died or has reported a failure.
    """

    ends: ChannelEnds
    stop: StopFlag
    process: ForkServerProcess = field(init=False)
    reports: Connection = field(init=False)
    failed: bool = False

    def begin(self, job: Job, recovery: Recovery | None = None) -> None:
        """Start the worker's process.

        Args:
            job: The job of all workers.
            recovery: What the worker needs to write snapshots, and to continue from them; None if
                it is not restarted.

        Raises:
            RunFailedError: The fork server has ended, or is stopped.
        """
        here, there = forkserver.context().Pipe()
        links = Links(
            parent=there, stop=self.stop, pulse=self.pulse, recovery=recovery, **vars(self.ends)
        )
        started = forkserver.context().Process(
            target=process.main, args=(job, self.seat, links), name=f"ppll-stage-{self.name}"
        )
        forkserver.begin(started)
        there.close()
        self.process, self.reports, self.failed = started, here, False

    def read(self, limit_s: float) -> Iterator[Report]:
        """Yield the reports that arrive within `limit_s` seconds."""
        end_s = time.monotonic() + limit_s
        with suppress(EOFError, OSError):  # OSError: the worker ended in the middle of a report
            while self.reports.poll(max(0.0, end_s - time.monotonic())):
                yield self.reports.recv()

    def death(self, job: Job) -> Report:
        """Return a failure report for a worker that ended without sending one."""
        self.process.join(LEAVE_S)
        how = forkserver.how_ended(self.process.exitcode)
        return self.failure(job, f"the worker process is gone ({how})")

    def kill(self) -> None:
        """Kill the worker's process, if it still runs."""
        self.process.kill()
        # Without the fork server, multiprocessing regards all workers as dead and sends no signal.
        if self.process.exitcode is not None and not self._is_gone(0):
            assert self.process.pid is not None
            os.kill(self.process.pid, signal.SIGKILL)

    def clean_up(self) -> None:
        """Wait for the end of a killed worker, and remove its files in shared memory."""
        self.process.join(LEAVE_S)
        self._is_gone(LEAVE_S)
        self.reports.close()
        if self.process.pid is not None:
            remove_left(self.process.pid)

    def _is_gone(self, limit_s: float) -> bool:
        with suppress(EOFError, OSError):
            while self.reports.poll(limit_s):
                self.reports.recv_bytes()  # discard the report
            return False
        return True
