"""ppll-compare: compare runs by the files in their directories.

Imports neither torch nor Hydra.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ppll_cli.cli.arguments import Parser, script, writing_to
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.files import write_text
from ppll_cli.leaves.printable import printable
from ppll_cli.observe.comparison import Comparison, compare
from ppll_cli.observe.comparison_tables import (
    LONGEST_NOTE,
    as_csv,
    as_markdown,
    groups_as_csv,
    tables,
)
from ppll_cli.observe.logs import only_warn

DESCRIPTION = """\
Compares runs: speed, speed-up over back-propagation and over sequential local learning, bubble,
time to a metric, memory. Runs that differ only in seed are shown as one group, with mean, standard
deviation and number of seeds. Interrupted and failed runs are listed with what is known of them;
runs that differ in model, data, batch size, epochs, precision or device are marked.
"""
EPILOG = """\
Writes comparison.csv (each run), comparison_groups.csv, comparison.md and comparison.png. Without
--output, they go into the given folder, if you give only one and it is not itself a run directory;
else into the current directory. The last line of the output says where they are.

Exit status: 0 done; 2 wrong input (one line says what is wrong); 1 the table could not be printed.
"""


def main() -> NoReturn:
    """Run the console script."""
    script("ppll-compare", _main)


def _main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="ppll-compare", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="RUN_OR_SWEEP_DIR",
        help="run directories, or folders that hold runs at any depth",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for comparison.*")
    parser.add_argument(
        "--each", action="store_true", help="a row for each run, even if runs differ only in seed"
    )
    options = parser.parse_args(arguments)
    folders = [Path(folder) for folder in options.folders]
    for given, folder in zip(options.folders, folders, strict=True):
        if not given or not os.path.isdir(folder):  # Path("") would be the current folder
            is_file = os.path.isfile(folder)
            raise _refused(given, "is not a folder" if is_file else "there is no such folder")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise _refused(given, "cannot be read: permission denied")
    comparison = compare(folders, each=options.each)
    if not comparison.rows:
        raise _refused(" ".join(options.folders), "holds no run")
    for given, folder in zip(options.folders, folders, strict=True):
        place = folder.resolve()
        if not any(row.run.folder.is_relative_to(place) for row in comparison.rows):
            sys.stderr.write(f"ppll-compare: {printable(given)} holds no run\n")
    output = options.output or _output(comparison, folders)
    with writing_to(output):
        output.mkdir(parents=True, exist_ok=True)
        written = write(comparison, output)
    show(comparison, output, written)


def _refused(folder: str, problem: str) -> ConfigError:
    return ConfigError("RUN_OR_SWEEP_DIR", folder, problem, "give a run directory")


def _output(comparison: Comparison, folders: Sequence[Path]) -> Path:
    # No output goes into a run directory, which holds only the files of its own run.
    of_runs = all(row.run.folder != folders[0].resolve() for row in comparison.rows)
    refused = any(row.run.status == "refused" for row in comparison.rows)
    return folders[0] if len(folders) == 1 and (of_runs or refused) else Path()


def write(comparison: Comparison, folder: Path) -> list[str]:
    """Write `comparison.md`, `comparison.csv`, `comparison_groups.csv` and `comparison.png`.

    If all jobs were refused, there is no picture. If the picture cannot be drawn, a warning is
    logged.

    Returns:
        The suffixes for `show`: ".md", ".csv" and, if the picture was written, ".png".

    Raises:
        OSError: A table cannot be written.
    """
    write_text(folder / "comparison.csv", as_csv(comparison))
    write_text(folder / "comparison_groups.csv", groups_as_csv(comparison))
    write_text(folder / "comparison.md", as_markdown(comparison))
    with only_warn("comparison.png could not be written"):
        from ppll_cli.observe.comparison_picture import picture

        if picture(folder / "comparison.png", comparison):
            return [".md", ".csv", ".png"]
    return [".md", ".csv"]


def show(
    comparison: Comparison, folder: Path, written: Sequence[str], then: str | None = None
) -> None:
    """Print a comparison, and which files `write` has written.

    Args:
        comparison: The comparison to print.
        folder: The folder of the files.
        written: The result of `write`; empty if no file was written.
        then: A command to suggest to the user; None for no suggestion.
    """
    from ppll_cli.observe.console import rich_console

    console = rich_console(160)
    for table in tables(comparison, console.width):
        console.print(table)
    for note in comparison.notes:
        console.print(printable(note, LONGEST_NOTE))
    if then:
        console.print(f"next: {then}", soft_wrap=True)
    if written:
        *others, last = written
        endings = f"{', '.join(others)} and {last}"
        console.print(f"{printable(folder / 'comparison')}{endings}", soft_wrap=True)


if __name__ == "__main__":
    main()
