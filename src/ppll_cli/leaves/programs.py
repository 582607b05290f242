"""The programs of this project, and how signals end them.

Each program imports this module first, so it imports only what takes little time.
"""

import os
import signal
import sys
from contextlib import suppress

MODULES = {
    "ppll-run": "ppll_cli",
    "ppll-plan": "ppll_cli.cli.plan",
    "ppll-compare": "ppll_cli.cli.compare",
    "ppll-eval": "ppll_cli.cli.evaluate",
}
"""The module of each program: `python -m MODULE` runs the program."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a program to end. Terminals and batch systems send them to all processes of
the program."""


def ending_signals() -> list[signal.Signals]:
    """Return the signals that end this program.

    `nohup`, and shells without job control, start a program with SIGHUP or SIGINT ignored. This
    program continues to ignore such signals, so they are not in the result.
    """
    ignorable = (signal.SIGINT, signal.SIGHUP)
    return [
        number
        for number in STOPPING
        if number not in ignorable or signal.getsignal(number) is not signal.SIG_IGN
    ]


def end_at_signals() -> None:
    """Let signals end this process with one line instead of a traceback, during its imports.

    The imports take a third of a second. After that, the program decides what signals do. Do
    nothing if this process runs none of this project's programs (see `MODULES`).
    """
    program = _running()
    if program is None:
        return

    def end(number: int, _: object) -> None:
        with suppress(OSError):  # standard error may be closed
            os.write(2, f"{program}: stopped by signal {number}\n".encode())
        os._exit(128 + number)  # the code that is being imported could catch an exception

    for number in ending_signals():
        signal.signal(number, end)


def _running() -> str | None:
    # A process of multiprocessing may have a copy of its parent's `sys.argv`, but each process has
    # a `sys.orig_argv` for itself.
    started = (getattr(sys, "argv", None) or [""])[0]
    if started == "-m":  # Python is still looking for the module
        return next((name for name, module in MODULES.items() if module in sys.orig_argv), None)
    name = os.path.basename(started)
    return name if name in MODULES and started in sys.orig_argv else None
