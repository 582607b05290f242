"""Writes the log file of a run. This module does not import torch."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import cast

from ppll_cli.errors import Interrupted
from ppll_cli.leaves.printable import error_text, lines
from ppll_cli.observe.streams import reason

log = logging.getLogger(__name__)


class LogFile(logging.FileHandler):
    """Writes the log file. If a write fails, stderr gets one message, and training continues."""

    _failed = False

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIOWrapper:
        opened = open(  # noqa: SIM115 - the handler closes it
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            opener=_without_links,
        )
        return cast(TextIOWrapper, opened)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Print why a record could not be written, but only the first time."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            line = f"the log file cannot be written: {reason(error)}: {self.baseFilename}\n"
            sys.stderr.write(line)


def _without_links(path: str, flags: int) -> int:
    if Path(path).is_relative_to("/dev"):  # `/dev/stdout` is a link
        return os.open(path, flags, 0o666)
    # Anybody who can write into the run directory could make the log file a link to a user's file.
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


class Lines(logging.Formatter):
    """Formats log records, and escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text. Line breaks are kept."""
        return lines(super().format(record))


def log_file() -> Path | None:
    """Return the path of the log file; None if there is none."""
    return next((Path(handler.baseFilename) for handler in _files()), None)


def to_file(text: str) -> None:
    """Write a text, line by line, to the log file but not to the terminal."""
    for line in text.splitlines():
        record = log.makeRecord(log.name, logging.INFO, __file__, 0, line, (), None)
        for handler in _files():
            if handler.level <= logging.INFO:
                handler.handle(record)


@contextmanager
def only_warn(problem: str) -> Iterator[None]:
    """Log an exception of the `with` block as a warning that begins with `problem`.

    `Interrupted` and `KeyboardInterrupt` are not caught.
    """
    try:
        yield
    except Interrupted:  # raised by a signal handler, which may run at any line
        raise
    except (Exception, SystemExit) as error:
        log.warning("%s: %s", problem, said(error))
        to_file(traceback.format_exc())


def said(error: BaseException) -> str:
    """Return an exception as one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(error_text(error).split())


def _files() -> list[logging.FileHandler]:
    handlers = logging.getLogger().handlers
    files = [handler for handler in handlers if isinstance(handler, logging.FileHandler)]
    return [handler for handler in files if handler.baseFilename != os.devnull]
