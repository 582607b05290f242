"""Writes messages about a failed run: the root cause, then the command that resumes the run."""

import errno
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppll_cli.config.commands import word
from ppll_cli.errors import Interrupted, PpllError, RunFailedError, WorkerFailedError
from ppll_cli.leaves import forkserver
from ppll_cli.observe.logs import log_file, said, to_file
from ppll_cli.observe.runs import CONFIG_FILE

log = logging.getLogger(__name__)

REMEDIES = {
    errno.ENOSPC: "a disk is full: free some space; `df -h {quoted} /dev/shm` shows which disk",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EFBIG: "the file would exceed the size limit: see `ulimit -f`",
    errno.EROFS: "the disk is read-only: make {place} writable",
    errno.EACCES: "make {place} writable",
    errno.EPERM: "make {place} writable",
    errno.ENOENT: "something removed or moved it during the run",
    errno.ENOTDIR: "something replaced a folder during the run",
    errno.EISDIR: "a folder is in its place: remove it",
    errno.ESTALE: "the network disk does not have it any more: check the disk",
    errno.EIO: "the disk has failed: check it",
}
"""What the user can do if results cannot be written, by the operating system's error number."""

_ELSEWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""With these errors, results cannot be written, whichever file the error names."""

_QUOTED = (*_ELSEWHERE, errno.EFBIG)
"""If the text of an exception contains one of these error numbers, the user is told a remedy.

EFBIG is not in `_ELSEWHERE`, because this program itself raises it for input that is too large."""

NO_THREAD = "can't start new thread"
"""Python's message if the system starts no further thread. It names no error number."""

NEW_RUN = "  if you resumed this run, it would fail again at this batch: start a new run instead"

_WORDS = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""Matches the operating system's error number in messages of safetensors and of Python."""


def tell(error: PpllError, run_dir: Path, resume_command: str) -> None:
    """Log why a run ended early, and either the command that resumes it or why that cannot help."""
    if isinstance(error, Interrupted):
        to_file(f"ppll-run: {error}")  # the terminal shows this line when the program ends
        log.info(_how_to_resume(run_dir, resume_command))
        return
    lines = [f"ppll-run: {error}"]
    report = error.report if isinstance(error, WorkerFailedError) else {}
    lines += _where(report)
    for stage, doing in report.get("others", {}).items():
        lines.append(f"  stage {stage} meanwhile: {doing}")
    remedy = _quoted_remedy(str(report.get("error", "")), run_dir)
    if remedy is not None:
        lines.append(f"  {remedy}")
    if (file := log_file()) is not None:
        lines.append(f"  log: {file}")
    repeats = isinstance(error, WorkerFailedError) and error.repeats
    lines.append(NEW_RUN if repeats else _how_to_resume(run_dir, resume_command))
    trace = report.get("traceback", "")
    explained = remedy is not None or report.get("on_purpose", False)
    log.error("\n".join(lines if explained else [*lines, trace]).rstrip())
    if explained:
        to_file(trace)


def tell_of_restart(report: Mapping[str, Any]) -> None:
    """Log why a worker failed, and that the worker is restarted."""
    lines = [f"ppll-run: {WorkerFailedError(dict(report))}", *_where(report)]
    lines.append(f"  stage {report['stage']} restarts; the other stages wait for it")
    log.warning("\n".join(lines))
    if report.get("traceback"):
        to_file(report["traceback"])


def _where(report: Mapping[str, Any]) -> list[str]:
    keys = ("phase", "batch", "shapes")
    return [f"  {key}: {report[key]}" for key in keys if report.get(key)]


def is_of_disk(error: OSError, run_dir: Path) -> bool:
    """Return whether an error means that results cannot be written."""
    if error.filename is None or error.errno in _ELSEWHERE:
        return error.errno in REMEDIES
    return error.errno in REMEDIES and Path(str(error.filename)).is_relative_to(run_dir)


def run_failed(error: Exception, run_dir: Path, doing: str = "") -> RunFailedError:
    """Return a RunFailedError for an exception that was raised in a run's parent process.

    `doing` says what failed, for example "summary.json could not be written". The message begins
    with it. If results cannot be written at all (see `is_of_disk`), the message says this instead.
    """
    if isinstance(error, OSError) and is_of_disk(error, run_dir):
        inside = error.filename is None or Path(str(error.filename)).is_relative_to(run_dir)
        place = run_dir if inside else Path(str(error.filename)).parent
        remedy: str | None = _remedy(error.errno or 0, run_dir, place)
        where = "" if error.filename else f": {run_dir}"
        return RunFailedError(f"results cannot be written: {said(error)}{where}; {remedy}")
    remedy = _quoted_remedy(str(error), run_dir)
    problem = f"{doing}: {said(error)}" if doing else said(error)
    return RunFailedError(problem + (f"; {remedy}" if remedy else ""))


def _quoted_remedy(text: str, run_dir: Path) -> str | None:
    if NO_THREAD in text:
        return forkserver.MORE_PROCESSES
    found = [int(a or b) for a, b in _WORDS.findall(text)]
    return next((_remedy(number, run_dir) for number in found if number in _QUOTED), None)


def _remedy(number: int, run_dir: Path, place: Path | None = None) -> str:
    return REMEDIES[number].format(place=place or run_dir, quoted=word(str(run_dir)))


def _how_to_resume(run_dir: Path, resume_command: str) -> str:
    if (run_dir / CONFIG_FILE).exists():
        return f"  to continue: {resume_command}"
    return f"  the run cannot be resumed: {run_dir / CONFIG_FILE} is missing"
