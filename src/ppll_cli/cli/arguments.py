"""What ppll-compare, ppll-eval and ppll-plan share: the command line and the exit status.

Imports no torch.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ppll_cli.config.commands import SEARCH_PATH, command, key_of, search_path
from ppll_cli.errors import ConfigError, Interrupted, RunFailedError, WorkerFailedError
from ppll_cli.leaves.programs import ending_signals
from ppll_cli.observe import streams


def script(program: str, main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a program, and exit: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C.

    Args:
        program: The program's name, for messages.
        main: The function that does the work, given the arguments of the command line.
    """
    streams.guard()
    if signal.SIGINT in ending_signals():  # until here, `end_at_signals` handled Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        check_surroundings()
        main(sys.argv[1:])
    except ConfigError as error:
        sys.stderr.write(f"{program}: {error}\n")
        sys.exit(2)
    except (WorkerFailedError, RunFailedError) as error:
        report = error.report if isinstance(error, WorkerFailedError) else {}
        sys.stderr.write(f"{program}: {error}\n{report.get('traceback', '')}".rstrip() + "\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: {Interrupted(signal.SIGINT)}\n")
        sys.exit(128 + signal.SIGINT)
    streams.leave(program)


def check_surroundings() -> None:
    """Check that the program can run on this system and in this folder.

    Raises:
        ConfigError: The system is not supported, or the current folder does not exist any more.
    """
    if sys.platform not in ("linux", "darwin"):
        raise ConfigError("platform", sys.platform, "is not supported", "use Linux or macOS")
    try:
        os.getcwd()
    except OSError:
        place = os.environ.get("PWD", ".")
        problem, remedy = "the current folder does not exist any more", "change to another folder"
        raise ConfigError("PWD", place, problem, remedy) from None


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Raise a ConfigError about `--output` if the `with` block fails to write into `folder`."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written to: {error.strerror or error}"
        raise ConfigError("--output", folder, problem, "give another folder") from None


def existing_folder(text: str) -> Path:
    """Return the folder with this path; raise argparse's error if there is none."""
    folder = Path(text).expanduser()
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return folder


def searched(config_dir: Path | None) -> list[str]:
    """Return the override that adds `config_dir` to Hydra's search path; [] for None."""
    if config_dir is None:
        return []
    return [search_path([config_dir])]


def refuse_if_only_for_runs(override: str, remedy: str) -> None:
    """Refuse an override of `resume` or of Hydra's keys, which only `ppll-run` can use.

    Hydra's search path is allowed, because `--config-dir` sets it too.

    Raises:
        ConfigError: The override is of such a key; `remedy` ends the message.
    """
    key, value = key_of(override), override.partition("=")[2]
    if re.match(r"(resume|hydra)\b", key) and key != SEARCH_PATH:
        raise ConfigError(key, value, "is only for ppll-run", remedy)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a ConfigError for wrong arguments, instead of exiting."""

    def __init__(self, prog: str, description: str, epilog: str, usage: str | None = None) -> None:
        plain = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, usage, description, epilog, formatter_class=plain)

    def add_config_dir(self) -> None:
        """Add the option `--config-dir`; `searched` turns its value into overrides."""
        self.add_argument(
            "--config-dir",
            type=existing_folder,
            metavar="FOLDER",
            help="folder with options of your own for the configuration groups",
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line with a ConfigError."""
        remedy = f"see {command(self.prog, '--help')}"
        raise ConfigError("arguments", " ".join(sys.argv[1:]), message, remedy)
