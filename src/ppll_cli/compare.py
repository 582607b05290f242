"""ppll-compare: runs side by side, read from their directories.

Neither torch nor Hydra is imported, and nothing is run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ppll_cli.arguments import Parser
from ppll_cli.errors import ConfigError
from ppll_cli.files import write_text
from ppll_cli.observe.comparison import Comparison, compare
from ppll_cli.observe.comparison_tables import as_csv, as_markdown, tables

DESCRIPTION = """\
Compares runs: speed, speed-up over back-propagation and over sequential local learning, bubble,
time to a metric, memory. Interrupted and failed runs are listed with what is known of them; runs
that differ in model, data, batch size, epochs, precision or device are marked.
"""
EPILOG = """\
Writes comparison.csv, comparison.md and comparison.png: for one folder that holds runs, into that
folder, else into the current directory. The last line says where.

Exit status: 0 done; 2 the input is wrong, said in one line.
"""


def main() -> NoReturn:
    """The console script."""
    try:
        _main(sys.argv[1:])
    except ConfigError as error:
        sys.stderr.write(f"ppll-compare: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _main(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="ppll-compare",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP_DIR")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the three files")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not folder.is_dir():
            problem = "there is no such folder"
            raise ConfigError("RUN_OR_SWEEP_DIR", folder, problem, "give a run directory")
    comparison = compare(options.folders)
    if not comparison.rows:
        where = " ".join(map(str, options.folders))
        raise ConfigError("RUN_OR_SWEEP_DIR", where, "holds no run", "give a run directory")
    output = options.output or _output(comparison, options.folders)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(comparison, output)
    except OSError as error:
        problem = f"cannot be written to: {error.strerror or error}"
        raise ConfigError("--output", output, problem, "give another folder") from None
    show(comparison, output)


def _output(comparison: Comparison, folders: Sequence[Path]) -> Path:
    """A folder of runs has room for their comparison; a run's own is left as it is."""
    of_runs = all(row.run.folder != folders[0].resolve() for row in comparison.rows)
    refused = any(row.run.status == "refused" for row in comparison.rows)
    return folders[0] if len(folders) == 1 and (of_runs or refused) else Path()


def write(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.csv`, `comparison.md` and `comparison.png`.

    Raises:
        OSError: One of them cannot be written.
    """
    from ppll_cli.observe.comparison_picture import picture

    write_text(folder / "comparison.csv", as_csv(comparison))
    write_text(folder / "comparison.md", as_markdown(comparison))
    picture(folder / "comparison.png", comparison)


def show(comparison: Comparison, folder: Path) -> None:
    """Print a comparison, and where it was written to."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    for table in tables(comparison, console.width):
        console.print(table)
    for note in comparison.notes:
        console.print(note)
    console.print(f"{folder / 'comparison'}.md, .csv and .png", soft_wrap=True)


if __name__ == "__main__":
    main()
