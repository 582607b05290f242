"""`python -m scripts.benchmarks NAME [options]`."""

import argparse
import sys

from scripts.benchmarks import (
    accuracy,
    beyond,
    host,
    network,
    restarts,
    scaling,
    schedules,
    soak,
    startup,
    transport,
)

NAMES = {
    "accuracy": accuracy.main,
    "beyond": beyond.main,
    "host": host.main,
    "network": network.main,
    "restarts": restarts.main,
    "scaling": scaling.main,
    "schedules": schedules.main,
    "soak": soak.main,
    "startup": startup.main,
    "transport": transport.main,
}


def main() -> None:
    """Run the benchmark that the first argument names."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        usage="%(prog)s NAME [options]",
        description="Run a benchmark. 'scripts/benchmark NAME --help' explains it.",
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    NAMES[parser.parse_args(sys.argv[1:2]).name](sys.argv[2:])


if __name__ == "__main__":
    main()
