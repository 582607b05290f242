"""`scripts/benchmark soak`: injects faults into runs, and checks that runs recover from them.

Each short run of a small model has one fault: a worker, the fork server or the parent process is
killed, a worker is stopped, the run is asked to end, or its newest checkpoint is damaged. The
moment and the worker are random; `--seed` is their seed. The run must end as documented and leave
no process and no shared memory behind. After `resume`, its final weights must be bit-identical to
those of a run without a fault. The exit status is 1 if any run fails a check.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ppll_cli.config.commands import setting, word
from ppll_cli.config.settings import usable_cores
from scripts.benchmarks.faults import DAMAGES, KINDS, TO_A_WORKER, Plan, damage, inject
from scripts.benchmarks.runs import RunFailedError, machine, save
from scripts.benchmarks.session import LIMIT_S, Session, ppll_run

RESULT = Path("outputs/benchmark/soak.json")
FOLDER = Path("outputs/benchmark/soak")
RUNS = 20
LONG_RUNS = 100

BATCHES = 12
EPOCHS = 6
EVALUATED = 2
"""Number of epochs between evaluations."""
SAVED = 5
"""Number of steps between checkpoints; some are in the middle of an epoch."""

COMMON = ["data=synthetic", "data.size=8", "data.flip=true", "data.pad=1", "data.test_samples=256"]
COMMON += [f"data.train_samples={16 * BATCHES}", "batch_size=16", f"epochs={EPOCHS}"]
COMMON += [f"eval_every={EVALUATED}", f"checkpoint.every={SAVED}", "threads=1", "device=cpu"]
VIT = ["model=vit", "model.dim=32", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
RESNET = ["model=resnet32", "model.depth=8", "optim=sgd", "optim.lr=0.05"]

CASES = {
    "vit bp 1": [*VIT, "schedule=bp", "gpus=1"],
    "vit ll 1": [*VIT, "schedule=ll", "gpus=1", "local.modules=3"],
    "vit ppll 2": [*VIT, "schedule=ppll", "gpus=2", "local.modules=3"],
    "vit ppll 3": [*VIT, "schedule=ppll", "gpus=3"],
    "vit 1f1b 3": [*VIT, "schedule=1f1b", "gpus=3", "optim.clip_norm=1"],
    "resnet gpipe 2": [*RESNET, "schedule=gpipe", "gpus=2"],
    "resnet ppll 3": [*RESNET, "schedule=ppll", "gpus=3"],
    "resnet pp 2": [*RESNET, "schedule=pp", "gpus=2"],
}

FAULTS = [
    *[("kill worker", moment) for moment in ("start-up", "training", "evaluation", "checkpoint")],
    *[("stop worker", moment) for moment in ("start-up", "training", "evaluation")],
    *[("kill parent", moment) for moment in ("start-up", "training", "evaluation", "checkpoint")],
    *[("interrupt", moment) for moment in ("start-up", "training", "evaluation")],
    *[("terminate", moment) for moment in ("start-up", "training", "checkpoint")],
    *[(kind, "training") for kind in ("kill fork server", *DAMAGES)],
]
"""Pairs of a fault and a moment. In `len(FAULTS)` successive runs, each pair occurs once."""

DELAYS_S = {"start-up": 4.0, "training": 0.1, "evaluation": 0.05, "checkpoint": 0.0}


@dataclass
class Outcome:
    """The results of a run with a fault.

    Attributes:
        injected: Whether the fault was injected before the end of the run.
        status: The exit status, or minus the number of the signal that killed the run.
        detected: Whether the run ended as documented.
        detection_s: Seconds from the fault to the end of the run; after "kill parent", to the end
            of its workers.
        left: Processes and shared memory that remained after the run.
        resumed_from: The step after which the run was continued; None if it was started again.
        recovered: Whether the weights equal those of a run without a fault.
        notes: Descriptions of all failed checks.
    """

    plan: Plan
    injected: bool = False
    status: int | None = None
    detected: bool = False
    detection_s: float | None = None
    left: list[str] = field(default_factory=list)
    resumed_from: int | None = None
    recovered: bool = False
    notes: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the outcome and its plan as a row of the JSON file."""
        return {**vars(self.plan), **{k: v for k, v in vars(self).items() if k != "plan"}}


def main(arguments: Sequence[str]) -> None:
    """Run all plans, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark soak", description=__doc__)
    parser.add_argument("--long", action="store_true", help=f"{LONG_RUNS} runs instead of {RUNS}")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random choices (default: 0)"
    )
    jobs = min(2, usable_cores())
    parser.add_argument("--jobs", type=int, default=jobs, help=f"runs at a time (default: {jobs})")
    options = parser.parse_args(arguments)
    console = Console()
    started_s = monotonic()
    outcomes = soak(plans(LONG_RUNS if options.long else RUNS, options.seed), options.jobs, console)
    result = {
        "machine": machine(),
        "seed": options.seed,
        "seconds": monotonic() - started_s,
        **summary(outcomes),
    }
    save(result, RESULT)
    _print(outcomes, result, console)
    good = result["detected"] == result["recovered"] == result["faults_injected"]
    if not good or result["leaks"]:
        sys.exit(1)


def plans(runs: int, seed: int) -> list[Plan]:
    """Return random plans: all faults occur equally often, and all cases occur equally often."""
    random = Random(seed)
    found: list[Plan] = []
    faults: list[tuple[str, str]] = []
    cases: list[str] = []
    for _ in range(runs):
        faults = faults or random.sample(FAULTS, len(FAULTS))
        cases = cases or random.sample(list(CASES), len(CASES))
        kind, moment = faults.pop()
        # A damaged checkpoint must not be the only one, and the run must not end before the fault.
        least = 3 * SAVED if kind in DAMAGES else 1
        step = random.randint(least, (EPOCHS - 2) * BATCHES)
        if moment == "evaluation":
            step = random.randrange(EVALUATED, EPOCHS - 1, EVALUATED) * BATCHES
        if moment == "checkpoint":
            step = random.randrange(SAVED, (EPOCHS - 2) * BATCHES, SAVED)
        longest_s = DELAYS_S[moment]
        if moment == "start-up" and kind in TO_A_WORKER:
            longest_s /= 4  # a worker starts late in the start-up, so less of it is left
        stage, delay_s = random.randrange(3), random.uniform(0, longest_s)
        found.append(Plan(cases.pop(), kind, moment, stage, step, delay_s, random.random()))
    return found


def soak(planned: Sequence[Plan], jobs: int, console: Console) -> list[Outcome]:
    """Run plans, `jobs` at a time, and remove the folders of runs that pass all checks."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    cases = sorted({plan.case for plan in planned})
    with ThreadPoolExecutor(jobs) as pool:
        whole = pool.map(partial(reference, folder=FOLDER), cases)
        references = dict(zip(cases, whole, strict=True))

        def run(number: int, plan: Plan) -> Outcome:
            folder = FOLDER / f"run-{number}"
            outcome = endure(plan, folder, references[plan.case])
            if not outcome.notes:
                shutil.rmtree(folder)
            said = "; ".join(outcome.notes) or "good"
            console.print(f"{number} {plan.case}: {plan.kind}, {plan.when()}: {said}")
            return outcome

        return list(pool.map(run, range(len(planned)), planned))


def reference(case: str, folder: Path) -> bytes:
    """Run a case without a fault in a folder inside `folder`, and return the final weights.

    Raises:
        RunFailedError: The run did not end with status 0.
    """
    own = folder / case.replace(" ", "-")
    with Session(*start(case, own)) as session:
        status = session.wait()
        if status != 0:
            raise RunFailedError(f"{case} ended with {status}: {session.printed()}")
    return weights(own)


def endure(plan: Plan, folder: Path, reference: bytes) -> Outcome:
    """Start a run in a new folder, inject the fault, resume the run, and check the results.

    `reference` has the weights of a run without a fault.
    """
    outcome = Outcome(plan)
    with Session(*start(plan.case, folder)) as session:
        fault_s = inject(plan, session, folder / "run")
        outcome.status = session.wait()
        end_s = monotonic()
        outcome.left += session.left()
        if plan.kind == "kill parent":
            end_s = monotonic()
        printed = session.printed()
    # The run may have ended before the fault hit it.
    outcome.injected = fault_s is not None and outcome.status != 0
    if not outcome.injected or fault_s is None:
        outcome.notes.append("it ended before its fault")
        return outcome
    outcome.detection_s = end_s - fault_s
    wrong = _wrong(plan, outcome, folder / "run", printed)
    if plan.kind in DAMAGES:
        damage(plan, folder / "run")
    _recover(plan, outcome, folder, reference)
    if plan.kind in DAMAGES and "is not used: " not in _printed(folder, "resume"):
        wrong.append("the damage was not reported")
    outcome.detected = not wrong
    outcome.notes += [*wrong, *(f"left: {each}" for each in outcome.left)]
    return outcome


def start(case: str, folder: Path, *overrides: str) -> tuple[list[str], Path]:
    """Return the command that starts a run of a case, and the file for its output."""
    folder.mkdir(parents=True, exist_ok=True)
    run_dir = f"hydra.run.dir={folder / 'run'}"
    return ppll_run(*COMMON, *CASES[case], *overrides, run_dir), folder / "start.txt"


def _wrong(plan: Plan, outcome: Outcome, run_dir: Path, printed: str) -> list[str]:
    wrong = []
    _, status = KINDS[plan.kind]
    if outcome.status is None:
        return [f"it did not end within {LIMIT_S:.0f} s"]
    if outcome.status != status:
        wrong.append(f"it ended with {outcome.status} instead of {status}")
    if "Traceback" in printed:
        wrong.append("a traceback was printed")
    if status == 1 and word(setting("resume", str(run_dir.absolute()))) not in printed:
        wrong.append("the command to continue was not printed")
    if plan.kind in TO_A_WORKER and f"ppll-run: stage {plan.worker} " not in printed:
        wrong.append(f"stage {plan.worker} was not named first")
    if status > 128 and plan.moment != "start-up":
        if not (run_dir / "checkpoints" / "last").exists():
            wrong.append("there is no checkpoint")
        told = run_dir / "summary.json"
        if not told.exists() or json.loads(told.read_text())["status"] != "interrupted":
            wrong.append("summary.json is missing, or its status is not interrupted")
    return wrong


def _recover(plan: Plan, outcome: Outcome, folder: Path, reference: bytes) -> None:
    # Resume the run, or start it again if it wrote no `config.json`; check the final weights.
    command, run_dir = ppll_run(f"resume={folder / 'run'}"), folder / "run"
    anew = not (run_dir / "config.json").exists()
    if anew:
        shutil.rmtree(run_dir, ignore_errors=True)
        command, _ = start(plan.case, folder)
    with Session(command, folder / "resume.txt") as session:
        status = session.wait()
        outcome.left += session.left()
    if status != 0:
        outcome.notes.append(f"resume ended with {status}")
        return
    if not anew:
        outcome.resumed_from = _resumed_from(_printed(folder, "resume"))
    outcome.recovered = weights(folder) == reference
    if not outcome.recovered:
        outcome.notes.append("its weights differ")


def _resumed_from(printed: str) -> int:
    _, told, rest = printed.partition("continuing after step ")
    return int(rest.split(",")[0]) if told else 0


def _printed(folder: Path, name: str) -> str:
    return (folder / f"{name}.txt").read_text(errors="replace")


def weights(folder: Path) -> bytes:
    """Return the bytes of a run's file of weights."""
    return (folder / "run" / "model.safetensors").read_bytes()


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return totals over all runs, and a row for each run."""
    injected = [outcome for outcome in outcomes if outcome.injected]
    times = [outcome.detection_s for outcome in injected if outcome.detection_s is not None]
    return {
        "runs": len(outcomes),
        "faults_injected": len(injected),
        "detected": sum(outcome.detected for outcome in injected),
        "recovered": sum(outcome.recovered for outcome in injected),
        "leaks": sum(len(outcome.left) for outcome in outcomes),
        "longest_detection_s": max(times, default=None),
        "rows": [outcome.row() for outcome in outcomes],
    }


def _print(outcomes: Sequence[Outcome], result: dict[str, Any], console: Console) -> None:
    table = Table("run", "fault", "moment", "status", "ended", "from", "", box=SIMPLE_HEAD)
    for outcome in outcomes:
        plan = outcome.plan
        to = f"{plan.kind} {plan.worker}" if plan.kind in TO_A_WORKER else plan.kind
        time = "" if outcome.detection_s is None else f"{outcome.detection_s:.2f} s"
        step = outcome.resumed_from
        anew = "anew" if outcome.recovered else ""
        resumed = anew if step is None else str(step)
        said = "; ".join(outcome.notes) or "good"
        table.add_row(plan.case, to, plan.when(), str(outcome.status), time, resumed, said)
    console.print(table)
    longest_s = result["longest_detection_s"]
    console.print(
        f"{result['runs']} runs: {result['faults_injected']} faults injected, {result['detected']} "
        f"detected (the longest took {0.0 if longest_s is None else longest_s:.1f} s), "
        f"{result['recovered']} recovered, {result['leaks']} leaks"
    )
