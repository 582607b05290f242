"""Standard output and standard error that cannot end a run. Imports no torch.

A pipe whose reader has left, a full disk, a closed descriptor or a terminal that is gone must not
end a training that has run for days.
"""

import logging
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn, TextIO, cast

log = logging.getLogger(__name__)

NAMES = ("stdout", "stderr")


class Shown:
    """A text stream that never raises: after its first failure, what is written to it is dropped.

    Args:
        stream: The stream that is written to.
        name: Its name in messages.
        failure: Why it cannot be written to, if that is known from the start.

    Attributes:
        failure: The first failure; None as long as the stream works.
    """

    def __init__(self, stream: TextIO, name: str, failure: Exception | None = None) -> None:
        self._stream, self._name, self._told = stream, name, False
        self.failure = failure

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        if self.failure is None:
            try:
                self._stream.write(text)
            except BlockingIOError:  # the reader is slow, and only this text is lost
                pass
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write out the buffer, or drop it."""
        if self.failure is None:
            try:
                self._stream.flush()
            except BlockingIOError:
                pass
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal that works."""
        try:
            return self.failure is None and self._stream.isatty()
        except ValueError:  # the stream is closed
            return False

    def tell(self) -> None:
        """Log the failure, once."""
        if self.failure is not None and not self._told:
            self._told = True
            log.info("nothing more is written to %s: %s", self._name, reason(self.failure))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, failure: Exception) -> None:
        self.failure = failure
        # Otherwise Python fails again at its end, on the text that is left in the buffer.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if logging.getLogger().handlers:  # before logging is set up, `tell_failures` comes later
            self.tell()


def guard() -> None:
    """Replace both standard streams by `Shown`; a second call changes nothing."""
    _open_closed()
    for name in NAMES:
        stream: TextIO | None = getattr(sys, name)
        if isinstance(stream, Shown):
            continue
        if stream is None:
            nowhere = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
            shown = Shown(nowhere, name, OSError("it was closed from the start"))
        else:
            shown = Shown(stream, name)
            # A character that the encoding lacks is written as its number.
            with suppress(AttributeError, OSError, ValueError):
                cast(Any, stream).reconfigure(errors="backslashreplace")
        setattr(sys, name, shown)


def tell_failures() -> None:
    """Log which streams failed before there was a log file."""
    for name in NAMES:
        stream = getattr(sys, name)
        if isinstance(stream, Shown):
            stream.tell()


def output_failure() -> str | None:
    """Return why a program's result could not be printed; None if printed, or nobody reads it."""
    stream = sys.stdout
    if not isinstance(stream, Shown):
        return None
    stream.flush()
    failure = stream.failure
    # Whoever closes a pipe has read enough, and whoever closes the descriptor wants no output.
    if failure is None or isinstance(failure, BrokenPipeError) or not getattr(failure, "errno", 0):
        return None
    return reason(failure)


def leave(program: str) -> NoReturn:
    """End a program whose result is its output: with status 0, or 1 if the output was lost."""
    if (failure := output_failure()) is not None:
        sys.stderr.write(f"{program}: the output cannot be written: {failure}\n")
    sys.exit(0 if failure is None else 1)


def reason(error: BaseException) -> str:
    """Return what the system says about an error, without the number."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or str(error) or type(error).__name__


def _open_closed() -> None:
    """Open the null device in the place of standard descriptors that are closed.

    Otherwise the next file that is opened would get such a number, and receive printed text.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(nowhere, True)
