"""Standard output and standard error as what they are here: only for show. Imports nothing heavy.

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
        failure: Why it cannot be written to, where that is known from the start.

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
        """Write out what is buffered, or drop it."""
        if self.failure is None:
            try:
                self._stream.flush()
            except BlockingIOError:
                pass
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Whether somebody may watch."""
        try:
            return self.failure is None and self._stream.isatty()
        except ValueError:  # the stream is closed
            return False

    def tell(self) -> None:
        """Log the failure, once."""
        if self.failure is not None and not self._told:
            self._told = True
            log.info("%s gets nothing: %s", self._name, reason(self.failure))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, failure: Exception) -> None:
        self.failure = failure
        # Python would stumble over the text in its buffer again as it ends.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if logging.getLogger().handlers:  # else there is no log file yet
            self.tell()


def guard() -> None:
    """Put a `Shown` in the place of both standard streams; a second call changes nothing."""
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
            # A character that the encoding lacks is shown by its number.
            with suppress(AttributeError, OSError, ValueError):
                cast(Any, stream).reconfigure(errors="backslashreplace")
        setattr(sys, name, shown)


def tell_failures() -> None:
    """Log which streams have failed before there was a log file."""
    for name in NAMES:
        stream = getattr(sys, name)
        if isinstance(stream, Shown):
            stream.tell()


def output_failure() -> str | None:
    """Why a program's result could not be printed; None where nobody wanted to read it further."""
    stream = sys.stdout
    if not isinstance(stream, Shown):
        return None
    stream.flush()
    failure = stream.failure
    # Who closes a pipe has read enough, and who closes the descriptor wants to read nothing.
    if failure is None or isinstance(failure, BrokenPipeError) or not getattr(failure, "errno", 0):
        return None
    return reason(failure)


def leave(program: str) -> NoReturn:
    """End a program whose result is what it prints: with 0, or with 1 where that was lost."""
    if (failure := output_failure()) is not None:
        sys.stderr.write(f"{program}: the output cannot be written: {failure}\n")
    sys.exit(0 if failure is None else 1)


def reason(error: BaseException) -> str:
    """What the system says of an error, without its number."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or str(error) or type(error).__name__


def _open_closed() -> None:
    """Have standard descriptors that are closed lead nowhere.

    The next file that is opened would get such a number, and would hold what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(nowhere, True)
