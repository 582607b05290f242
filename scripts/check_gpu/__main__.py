"""`scripts/check-gpu [options]`: run the steps, print a table, and exit with 1 if a step failed."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.session import let_sessions_be_interrupted
from scripts.check_gpu.report import Report
from scripts.check_gpu.running import Check, run_steps
from scripts.check_gpu.steps import groups, needed, unavailable

LIMIT_S = 525.0
OUTPUT = Path("outputs/check-gpu")
GROUPS = "facts, exact, equal, users, numbers, equal numbers, tests, speed"


def main(arguments: Sequence[str]) -> int:
    """Run the check; return 0, or 1 if a step failed, or 2 if the check cannot run here."""
    options = _options(arguments)
    let_sessions_be_interrupted()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="check-gpu-", ignore_cleanup_errors=True) as work:
        os.environ["XDG_CACHE_HOME"] = f"{work}/cache"  # uses no old profile, and leaves no file
        check = Check(
            report=Report(options.output),
            cuda=options.device == "cuda",
            quick=options.quick,
            work=Path(work),
            limit_s=options.limit,
            patience=options.patience,
        )
        problem = unavailable(check)
        if problem is not None:
            print(f"check-gpu: {problem}", file=sys.stderr)  # noqa: T201
            return 2
        (check.work / "runs").mkdir()
        try:
            for group in needed([*groups(check)], options.only):
                run_steps(check, group.steps, group.width)
        finally:  # show the results so far, even after an exception
            print(f"\n{check.report.table()}", flush=True)  # noqa: T201
            print(f"written to {options.output}", flush=True)  # noqa: T201
    return 1 if check.report.failed() else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/check-gpu", description=__doc__)
    default = os.environ.get("DEVICE", "cuda")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default)
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        help=f"groups of steps, with commas between them: {GROUPS}",
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the check itself")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="time limit in seconds (525)")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="factor for the time limits of single steps (1)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the results")
    options = parser.parse_args(arguments)
    known = GROUPS.split(", ")
    for name in options.only:
        if name not in known:
            parser.error(f"--only: there is no group {name!r}; there are {GROUPS}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
