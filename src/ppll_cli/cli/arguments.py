"""Command lines of the programs that are not Hydra's. Imports nothing heavy."""

import argparse
import sys
from typing import NoReturn

from ppll_cli.config.commands import command
from ppll_cli.errors import ConfigError


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
