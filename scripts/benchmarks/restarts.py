"""`scripts/benchmark restarts`: kills and stops single stages of runs with `recover=stage`.

Each short run of a small model has one fault or two faults. Two faults hit either one stage twice
in a row, or two stages at once. The moments are random: during the start-up, training, an
evaluation, a checkpoint or a snapshot. The run must end with exit status 0 and with the weights of
a run without a fault, bit for bit. Only stages that were hit may get a new process, and no process
and no shared memory may be left behind. The exit status is 1 if any run fails a check, or if fewer
faults than runs were injected.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from signal import SIGKILL, SIGSTOP, Signals
from statistics import median
from time import monotonic, sleep
from typing import Any

from rich.console import Console

from ppll_cli.leaves.scratch import SHARED_MEMORY
from scripts.benchmarks.faults import SEARCH_S, steps
from scripts.benchmarks.runs import machine, save
from scripts.benchmarks.session import LIMIT_S, Session
from scripts.benchmarks.soak import BATCHES, EPOCHS, EVALUATED, SAVED, reference, start, weights

RESULT = Path("outputs/benchmark/restarts.json")
FOLDER = Path("outputs/benchmark/restarts")
RUNS = 40
RECOVER = ("recover=stage", "recover.every=4")

NAMES = ("vit ppll 2", "vit ppll 3", "resnet ppll 3")
MOMENTS = ("start-up", "training", "evaluation", "checkpoint", "snapshot", "twice", "together")
DELAYS_S = {"start-up": 1.0, "training": 0.1, "evaluation": 0.05, "twice": 0.1, "together": 0.1}
"""The longest time from the moment to the fault, in seconds, by moment."""


@dataclass(frozen=True)
class Plan:
    """A run and its faults.

    Attributes:
        case: A key of `soak.CASES`.
        number: The signal that the stages get.
        moment: When the first fault is injected, and how many there are; one of `MOMENTS`.
        stages: The stages that are hit.
        step: Number of optimizer steps after which the first fault is injected.
        delay_s: Seconds between the moment and the fault.
    """

    case: str
    number: Signals
    moment: str
    stages: tuple[int, ...]
    step: int
    delay_s: float


@dataclass
class Outcome:
    """The results of a run with faults.

    Attributes:
        hits: Number of faults injected.
        restarts: Seconds from the detection of each fault until the new worker was ready; None if
            the new worker failed before it was ready.
        notes: Descriptions of all failed checks.
    """

    plan: Plan
    hits: int = 0
    restarts: list[float | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> None:
    """Run all plans, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark restarts", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"number of runs (default: {RUNS})")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random choices (default: 0)"
    )
    options = parser.parse_args(arguments)
    console = Console()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    references: dict[str, bytes] = {}
    outcomes: list[Outcome] = []
    for plan in plans(options.runs, options.seed):
        if plan.case not in references:
            references[plan.case] = reference(plan.case, FOLDER)
        outcomes.append(endure(plan, FOLDER / f"run-{len(outcomes)}", references[plan.case]))
        said = "; ".join(outcomes[-1].notes) or "good"
        hit = ", ".join(map(str, plan.stages))
        console.print(
            f"{plan.case}: {plan.number.name} to stage {hit}, {plan.moment} {plan.step}: {said}"
        )
    result = {"machine": machine(), "seed": options.seed, **summary(outcomes)}
    save(result, RESULT)
    console.print(
        f"{result['runs']} runs: {result['faults']} faults injected, {result['restarts']} restarts "
        f"(median {result['median_s']:.2f} s, longest {result['longest_s']:.2f} s from detection "
        f"until the new worker is ready), {result['failed']} runs failed a check"
    )
    if result["failed"] or result["faults"] < options.runs:
        sys.exit(1)


def plans(runs: int, seed: int) -> list[Plan]:
    """Return random plans in which all moments occur equally often."""
    random = Random(seed)
    found: list[Plan] = []
    moments: list[str] = []
    for _ in range(runs):
        moments = moments or random.sample(MOMENTS, len(MOMENTS))
        moment, case = moments.pop(), random.choice(NAMES)
        workers = range(int(case.split()[-1]))
        stages = tuple(random.sample(workers, 2 if moment == "together" else 1))
        # A worker that is stopped in its start-up is found only after a minute.
        number = SIGKILL if moment == "start-up" else random.choice((SIGKILL, SIGSTOP))
        step = random.randint(1, (EPOCHS - 3) * BATCHES)
        if moment == "evaluation":
            step = random.randrange(EVALUATED, EPOCHS - 1, EVALUATED) * BATCHES
        if moment == "checkpoint":
            step = random.randrange(SAVED, (EPOCHS - 3) * BATCHES, SAVED)
        delay_s = random.uniform(0, DELAYS_S.get(moment, 0.0))
        found.append(Plan(case, number, moment, stages, step, delay_s))
    return found


def endure(plan: Plan, folder: Path, reference: bytes) -> Outcome:
    """Start a run in a new folder, inject the faults, and check its results and its weights."""
    outcome, run_dir = Outcome(plan), folder / "run"
    workers = int(plan.case.split()[-1])
    with Session(*start(plan.case, folder, *RECOVER)) as session:
        session.wait_until(lambda: len(session.workers()) == workers, look_s=SEARCH_S)
        first = [each.pid for each in session.workers()]
        if session.wait_until(lambda: _at(plan, run_dir), look_s=0):
            sleep(plan.delay_s)
            session.signal(plan.number, *(first[stage] for stage in plan.stages))
            outcome.hits += len(plan.stages)
        later: set[int] = set()
        if plan.moment == "twice" and session.wait_until(lambda: bool(_new(session, first))):
            later = _new(session, first)
            sleep(plan.delay_s)
            session.signal(plan.number, *later)
            outcome.hits += 1
        seen: set[int] = {*first, *later}
        end_s = monotonic() + LIMIT_S
        while session.status is None and monotonic() < end_s:
            seen |= {each.pid for each in session.workers()}
            sleep(SEARCH_S)
        status = session.status
        outcome.notes += [f"left: {each}" for each in session.left()]
    if status != 0:
        outcome.notes.append(f"the run ended with status {status}")
        return outcome
    restarts = json.loads((run_dir / "summary.json").read_text())["restarts"]
    outcome.restarts = [each["seconds"] for each in restarts]
    if {each["stage"] for each in restarts} - {*plan.stages}:
        outcome.notes.append("a stage without a fault was restarted")
    if len(seen) > workers + len(restarts):
        outcome.notes.append(f"{len(seen)} processes for {len(restarts)} restarts")
    if weights(folder) != reference:
        outcome.notes.append("its weights differ")
    if not outcome.notes:
        shutil.rmtree(folder)
    return outcome


def _at(plan: Plan, run_dir: Path) -> bool:
    if plan.moment == "start-up":
        return True
    if plan.moment == "checkpoint":
        return (run_dir / "checkpoints" / f".step-{plan.step}.unfinished").exists()
    if plan.moment == "snapshot":
        stage = plan.stages[0]
        return any(SHARED_MEMORY.glob(f"ppll-run-*/*/*/stage-{stage}/*.new"))
    return steps(run_dir) >= plan.step


def _new(session: Session, before: Sequence[int]) -> set[int]:
    return {each.pid for each in session.workers()} - {*before}


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return totals over all runs, and a row for each run."""
    restarts = [each for outcome in outcomes for each in outcome.restarts]
    seconds = [each for each in restarts if each is not None]
    return {
        "runs": len(outcomes),
        "faults": sum(outcome.hits for outcome in outcomes),
        "restarts": len(restarts),
        "median_s": median(seconds or [0.0]),
        "longest_s": max(seconds, default=0.0),
        "failed": sum(bool(outcome.notes) for outcome in outcomes),
        "rows": [
            {**asdict(each.plan), "number": each.plan.number.name, **_measured(each)}
            for each in outcomes
        ],
    }


def _measured(outcome: Outcome) -> dict[str, Any]:
    return {"hits": outcome.hits, "restarts": outcome.restarts, "notes": outcome.notes}
