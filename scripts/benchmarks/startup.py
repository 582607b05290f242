"""`scripts/benchmark startup`: time from the start of a run to its first training step.

It trains the default model on two stages, and measures the time from the start of the process until
the metrics file contains the first step. For comparison, `import torch` alone is timed. An epoch
has one batch, because metrics are written at the end of an epoch. The results are medians of
alternating repetitions.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.runs import RunFailedError, machine, save
from scripts.benchmarks.session import LIMIT_S, Session, ppll_run

RESULT = Path("outputs/benchmark/startup.json")
GPUS = 2
OVERRIDES = [
    f"gpus={GPUS}",
    "device=cpu",
    "data=synthetic",
    "data.size=8",
    "data.channels=1",
    "data.train_samples=64",
    "data.test_samples=8",
    "max_steps=1",
]


def main(arguments: Sequence[str]) -> None:
    """Measure both times, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark startup", description=__doc__)
    parser.add_argument("--long", action="store_true", help="15 repetitions instead of 5")
    result = measure(15 if parser.parse_args(arguments).long else 5)
    save({"machine": machine(), **result}, RESULT)
    table = Table("", "seconds")
    for name in ("import_torch_s", "first_step_s"):
        table.add_row(name, f"{result[name]:.2f}")
    table.add_row("first_step_over_import_torch", f"{result['first_step_over_import_torch']:.2f}")
    Console().print(table)


def measure(repetitions: int) -> dict[str, float]:
    """Measure both times repeatedly.

    Return the medians `import_torch_s` and `first_step_s`, and their ratio
    `first_step_over_import_torch`.
    """
    imports, steps = [], []
    for _ in range(repetitions):
        imports.append(_import_torch())
        steps.append(_first_step())
    import_s, step_s = median(imports), median(steps)
    return {
        "first_step_over_import_torch": step_s / import_s,
        "import_torch_s": import_s,
        "first_step_s": step_s,
    }


def _import_torch() -> float:
    start = perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, timeout=LIMIT_S)
    return perf_counter() - start


def _first_step() -> float:
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "run", "metrics.jsonl")
        command = ppll_run(*OVERRIDES, f"hydra.run.dir={metrics.parent}")

        def trained() -> bool:
            return metrics.exists() and '"train"' in metrics.read_text()

        with Session(command, Path(folder, "printed.txt")) as session:
            if not session.wait_until(trained):
                raise RunFailedError(f"no training step was done by {' '.join(command)}")
            seconds = monotonic() - session.started_s
            session.wait()
    return seconds
