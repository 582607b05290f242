"""Command lines of the programs that are not Hydra's. Imports nothing heavy."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ppll_cli.config.commands import command, setting
from ppll_cli.errors import ConfigError, RunFailedError, WorkerFailedError
from ppll_cli.observe import streams


def script(program: str, main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a program whose result is what it prints, and end with its exit status.

    Args:
        program: Its name, which error messages begin with.
        main: What it does with its arguments.
    """
    streams.guard()
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.stderr.write(f"{program}: {error}\n")
        sys.exit(2)
    except WorkerFailedError as error:
        sys.stderr.write(f"{program}: {error}\n{error.report.get('traceback', '')}".rstrip() + "\n")
        sys.exit(1)
    except RunFailedError as error:
        sys.stderr.write(f"{program}: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    streams.leave(program)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Report that results cannot be written as a wrong `--output`.

    Raises:
        ConfigError: The body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        problem = f"cannot be written to: {error.strerror or error}"
        raise ConfigError("--output", folder, problem, "give another folder") from None


def existing_folder(text: str) -> Path:
    """An argument that names a folder.

    Raises:
        argparse.ArgumentTypeError: There is none.
    """
    folder = Path(text).expanduser()
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return folder


def searched(config_dir: Path | None) -> list[str]:
    """The override by which Hydra finds options in a folder of the user's."""
    if config_dir is None:
        return []
    return [setting("hydra.searchpath", [f"file://{config_dir.resolve()}"])]


class Parser(argparse.ArgumentParser):
    """Complains of wrong arguments as of any wrong input: in one line, with exit status 2.

    Args:
        prog: The program's name.
        description: What it does; lines stay as they are.
        epilog: What else `--help` says; lines stay as they are.
        usage: The usage line, where argparse would not write it well.
    """

    def __init__(self, prog: str, description: str, epilog: str, usage: str | None = None) -> None:
        plain = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, usage, description, epilog, formatter_class=plain)

    def add_config_dir(self) -> None:
        """Add `--config-dir`, which is to be given to `searched`."""
        self.add_argument(
            "--config-dir",
            type=existing_folder,
            metavar="FOLDER",
            help="with options of your own for the configuration groups",
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "arguments", " ".join(sys.argv[1:]), message, f"see {command(self.prog, '--help')}"
        )
