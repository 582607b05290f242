"""Processes that measure, or that compute beside the measuring process."""

import traceback
from collections.abc import Callable
from typing import Any

from ppll_cli.leaves import forkserver
from ppll_cli.leaves.printable import error_text

LEAVE_S = 5.0
"""Seconds to wait for the end of a killed process."""


class Helper:
    """A process that this process has started, and this process's end of the pipe between them.

    The process calls `work` with the other end of the pipe and with `arguments`.

    Raises:
        RunFailedError: The process cannot be started.
    """

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        forkserver.start()
        context = forkserver.context()
        self.link, there = context.Pipe()
        self.process = context.Process(target=work, args=(there, *arguments), daemon=True)
        forkserver.begin(self.process)
        there.close()

    def close(self) -> None:
        """End the process, which frees its memory on the device."""
        self.process.kill()
        self.process.join(LEAVE_S)
        self.link.close()


def report_of(error: Exception) -> dict[str, Any]:
    """Return the report of an exception that is being handled, for a WorkerFailedError."""
    return {"error": error_text(error), "traceback": traceback.format_exc()}
