"""`python -m scripts.benchmarks NAME [options]`."""

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
    """Run the benchmark that the first argument names, with the further arguments as options."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in NAMES:
        possible = ", ".join(NAMES)
        sys.stderr.write(f"benchmark {name!r}: there is no such one; possible: {possible}\n")
        sys.exit(2)
    NAMES[name](arguments)


if __name__ == "__main__":
    main()
