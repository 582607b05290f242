"""Command lines of the programs that are not Hydra's. Imports nothing heavy."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ppll_cli.config.commands import command
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


class Parser(argparse.ArgumentParser):
    """Complains of wrong arguments as of any wrong input: in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "arguments", " ".join(sys.argv[1:]), message, f"see {command(self.prog, '--help')}"
        )
