"""Runs the program inside a test, without starting Python and importing torch each time.

Only tests of processes and signals need a separate process, which `warm.py` starts. Only tests of
the start-up need a program that begins with nothing imported.
"""

import argparse
import io
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from copy import copy
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf.basecontainer import BaseContainer

from ppll_cli.cli import app, compare, evaluate, plan
from ppll_cli.leaves import forkserver
from ppll_cli.leaves.programs import STOPPING


@contextmanager
def restored() -> Iterator[None]:
    """Undo the changes that the program and Hydra make in a process.

    These are signal handlers, singletons, log handlers, the handling of wrong arguments, and
    modules imported from a user's folder.
    """
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    Plugins.instance()  # Hydra's search for plugins takes longer than most tests: find them once
    signals = {number: signal.getsignal(number) for number in STOPPING}
    singletons = {kind: copy(made) for kind, made in Singleton._instances.items()}
    resolvers = {**BaseContainer._resolvers}
    modules, path = {*sys.modules}, [*sys.path]
    refuse = argparse.ArgumentParser.error
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None  # it would name the folder of another program's start
    try:
        yield
    finally:
        # Singleton.set_state would search for plugins again, and copy all singletons.
        Singleton._instances = singletons
        BaseContainer._resolvers = resolvers
        argparse.ArgumentParser.error = refuse  # type: ignore[method-assign]
        for number, handler in signals.items():
            signal.signal(number, handler)
        for made in [*root.handlers]:
            root.removeHandler(made)
            if made not in before:
                made.close()
        for there in before:
            root.addHandler(there)
        root.setLevel(level)
        theirs = {*sys.path} - {*path}
        sys.path[:] = path
        for name in {*sys.modules} - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if str(Path(file).parent) in theirs:
                del sys.modules[name]


def ppll_run(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    """Run `ppll-run`, and return its output and status.

    Workers come from this process's fork server.
    """
    return _called(app.main, "ppll-run", arguments, cwd)


def ppll_plan(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    """Run `ppll-plan`, and return its output and status."""
    return _called(plan.main, "ppll-plan", arguments, cwd)


def ppll_eval(*arguments: str | Path, cwd: Path = Path()) -> CompletedProcess[str]:
    """Run `ppll-eval`, and return its output and status."""
    return _called(evaluate.main, "ppll-eval", list(map(str, arguments)), cwd)


def ppll_compare(*arguments: str | Path, cwd: Path = Path()) -> CompletedProcess[str]:
    """Run `ppll-compare`, and return its output and status."""
    return _called(compare.main, "ppll-compare", list(map(str, arguments)), cwd)


Call = tuple[list[str], int, list[str]]
"""The arguments of a call, its status, and names of modules that are imported after it."""


def imported(
    module: str, names: Sequence[str], calls: Sequence[Sequence[str]], cwd: Path
) -> list[Call]:
    """Call a console script several times in one separate process.

    Args:
        module: The module with the script's `main`.
        names: The modules to look for.
        calls: The arguments of each call.
        cwd: The directory in which it runs.
    """
    script = (
        f"import json, sys; from {module} import main; ends = []\n"
        f"for arguments in {[[*call] for call in calls]!r}:\n"
        "    sys.argv[1:] = arguments\n"
        "    try:\n        main()\n    except SystemExit as end:\n"
        f"        found = [n for n in {[*names]!r} if n in sys.modules]\n"
        "        ends.append((arguments, end.code, found))\n"
        "print(json.dumps(ends))"
    )
    done = run(
        [sys.executable, "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return [(given, code, found) for given, code, found in json.loads(done.stdout.splitlines()[-1])]


def _called(
    main: Callable[[], object], name: str, arguments: Sequence[str], cwd: Path
) -> CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    command = [name, *arguments]
    with restored(), chdir(cwd), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        patch.setenv("HYDRA_FULL_ERROR", "1")  # the program sets it too; undo it after the test
        patch.setattr(forkserver, "stop", lambda: None)  # the next test needs the server
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    code = left.value.code
    assert isinstance(code, int)
    return CompletedProcess(command, code, out.getvalue(), err.getvalue())
