"""Starts ppll-run, or a piece of code, in a process that has imported torch already.

Started from nothing, each run imports torch twice, in the launcher and in its fork server. Together
they take five seconds of a core. Here the launcher is forked from the fork server of the tests, and
forks its own fork server. Its signals, session, output and helper processes are those of a program.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver as servers
from multiprocessing import process, resource_tracker, util
from pathlib import Path
from time import monotonic
from typing import Any

from ppll_cli.leaves import forkserver
from ppll_cli.leaves.programs import STOPPING
from scripts.benchmarks.session import Session, names_in_shared_memory

PRELOAD = "ppll_cli.launch.preload"


class WarmSession(Session):
    """Runs ppll-run in its own session, as `Session` does.

    Args:
        arguments: The arguments of ppll-run.
        output: The file to which the program's output is written.
        environment: Environment variables, in addition to those of the tests' fork server.
        first: Python code that the launcher executes first. Workers are forked from the launcher's
            process in the end, so what it changes in modules is changed in workers too.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        output: Path,
        environment: Mapping[str, str] | None = None,
        first: str = "",
    ) -> None:
        self.output = output
        self._before = names_in_shared_memory()
        output.touch()
        forkserver.start()
        told = ([*arguments], str(output), dict(environment or {}), first)
        program = multiprocessing.get_context("forkserver").Process(target=_program, args=told)
        self.started_s = monotonic()
        program.start()
        self._popen: Any = program._popen  # type: ignore[attr-defined]


def passes_in_a_new_process(code: str) -> bool:
    """Execute code in a process that has imported torch and little else.

    The process is forked from the fork server of the tests.
    """
    forkserver.start()
    child = forkserver.context().Process(target=exec, args=(code, {}))
    child.start()
    child.join(100.0)
    passed = child.exitcode == 0
    child.kill()
    child.join()
    return passed


def _program(arguments: list[str], output: str, environment: dict[str, str], first: str) -> None:
    os.setsid()
    with open(output, "wb") as file, open(os.devnull, "rb") as nothing:
        for target, source in ((0, nothing), (1, file), (2, file)):
            os.dup2(source.fileno(), target)
    os.environ.update(environment)
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _begin_as_a_program()
    tempfile.tempdir = None  # `environment` may have another folder
    main: Any = importlib.import_module("ppll_cli.__main__")
    sys.modules["__main__"], sys.argv = main, [main.__file__, *arguments]
    sys.orig_argv = [sys.executable, "-m", "ppll_cli", *arguments]
    exec(first, {})
    try:
        main.main()
    finally:
        atexit._run_exitfuncs()


def _begin_as_a_program() -> None:
    """Forget the helper processes of the tests, so that the program starts its own."""
    here: Any = process.current_process()
    here._name = "MainProcess"
    here._config.pop("tempdir", None)
    process._parent_process = None  # type: ignore[attr-defined]
    _forget(servers._forkserver)
    _forget(resource_tracker._resource_tracker)
    util.spawnv_passfds = _forking(util.spawnv_passfds)


def _forking(spawn: Callable[..., int]) -> Callable[..., int]:
    """Return a function that starts a helper process. A fork server is forked instead."""

    def start(path: bytes, arguments: Sequence[str], kept: Sequence[int]) -> int:
        code = arguments[-1]
        if not code.startswith("from multiprocessing.forkserver "):
            return spawn(path, arguments, kept)
        process_id = os.fork()
        if process_id:
            return process_id
        try:
            _close_all_but({0, 1, 2, *kept})
            sys.modules.pop(PRELOAD, None)  # the server imports this module for its effects
            _forget(servers._forkserver)
            exec(code, {})
        finally:
            os._exit(0)

    return start


def _forget(helper: Any) -> None:
    """Make multiprocessing's record of a helper process that of a process that has not begun."""
    helper.__init__()


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/dev/fd"):
        if int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))
