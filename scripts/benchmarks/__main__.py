"""`python -m scripts.benchmarks NAME [options]`."""

import argparse
import sys
from importlib import import_module

from scripts.benchmarks.session import let_sessions_be_interrupted

NAMES = (
    *("accuracy", "beyond", "host", "network", "restarts"),
    *("scaling", "schedules", "soak", "startup", "transport"),
)


def main() -> None:
    """Run the benchmark that the first argument names."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        usage="%(prog)s NAME [options]",
        description="Run a benchmark. 'scripts/benchmark NAME --help' explains it.",
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    name = parser.parse_args(sys.argv[1:2]).name
    let_sessions_be_interrupted()
    import_module(f"scripts.benchmarks.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
