"""Replaces standard output and standard error by streams whose failures cannot end a run.

A failure is a pipe without a reader, a full disk, or a closed terminal. Imports no torch.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TextIO, cast

log = logging.getLogger(__name__)

NAMES = ("stdout", "stderr")


class Shown:
    """A text stream that never raises. After its first failure it drops all text.

    `failure` is the first failure; None if the stream works.
    """

    def __init__(self, stream: TextIO, name: str, failure: Exception | None = None) -> None:
        self._stream, self._name, self._told = stream, name, False
        self.failure = failure

    def write(self, text: str) -> int:
        """Write a text; drop it if this fails, or if the stream has failed before."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write out the buffer; do nothing if the stream has failed before."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[..., object], *arguments: str) -> None:
        if self.failure is None:
            try:
                act(*arguments)
            except BlockingIOError:  # the reader is slow, and only this text is lost
                pass
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._give_up(error)

    def isatty(self) -> bool:
        """Return whether the stream is a working terminal."""
        try:
            return self.failure is None and self._stream.isatty()
        except ValueError:  # the stream is closed
            return False

    def tell(self) -> None:
        """Log the failure, if there is one; later calls log nothing."""
        if self.failure is not None and not self._told:
            self._told = True
            log.info("nothing more is written to %s: %s", self._name, reason(self.failure))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, failure: Exception) -> None:
        self.failure = failure
        # When Python exits, it flushes the buffer. After this change, the buffer goes to the null
        # device, so that flushing causes no error.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if logging.getLogger().handlers:  # else `tell_failures` logs it later
            self.tell()


def guard() -> None:
    """Replace stdout and stderr by `Shown`, so that their failures cannot end the process."""
    _open_closed()
    for name in NAMES:
        stream: TextIO | None = getattr(sys, name)
        if isinstance(stream, Shown):
            continue
        if stream is None:
            nowhere = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
            shown = Shown(nowhere, name, OSError("it was closed from the start"))
        else:
            shown = Shown(stream, name)
            # A character that the encoding lacks is written as an escape, such as \u2588.
            with suppress(AttributeError, OSError, ValueError):
                cast(Any, stream).reconfigure(errors="backslashreplace")
        setattr(sys, name, shown)


def tell_failures() -> None:
    """Log earlier failures of the streams. Call this when logging has been set up."""
    for name in NAMES:
        stream = getattr(sys, name)
        if isinstance(stream, Shown):
            stream.tell()


def output_failure() -> str | None:
    """Return why output to stdout was lost, such as a full disk; None if nothing was lost.

    It is also None if the reader closed the pipe, or if stdout was closed from the start.
    """
    stream = sys.stdout
    if not isinstance(stream, Shown):
        return None
    stream.flush()
    failure = stream.failure
    # A reader that closes the pipe has read enough. A caller that closes stdout wants no output.
    if failure is None or isinstance(failure, BrokenPipeError) or not getattr(failure, "errno", 0):
        return None
    return reason(failure)


def leave(program: str) -> NoReturn:
    """End a program that has printed its result: with status 0, or 1 if output was lost."""
    if (failure := output_failure()) is not None:
        sys.stderr.write(f"{program}: the output cannot be written: {failure}\n")
    sys.exit(0 if failure is None else 1)


def reason(error: BaseException) -> str:
    """Return the system's text for an error, without the error number."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or str(error) or type(error).__name__


def _open_closed() -> None:
    # Opens the null device for each closed descriptor among 0, 1 and 2. Otherwise a file that is
    # opened later could get the descriptor, and receive printed text.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets `descriptor`, the lowest free number
            os.set_inheritable(nowhere, True)
