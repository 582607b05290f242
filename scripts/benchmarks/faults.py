"""Injects the faults of the soak benchmark into a run, from another process."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from scripts.benchmarks.session import Session

KINDS = {
    "kill worker": (signal.SIGKILL, 1),
    "stop worker": (signal.SIGSTOP, 1),
    "kill fork server": (signal.SIGKILL, 1),
    "kill parent": (signal.SIGKILL, -signal.SIGKILL),
    "interrupt": (signal.SIGINT, 128 + signal.SIGINT),
    "terminate": (signal.SIGTERM, 128 + signal.SIGTERM),
    "truncate": (signal.SIGKILL, 1),
    "flip": (signal.SIGKILL, 1),
}
"""For each fault, the signal and the exit status with which the run must end. For `DAMAGES`, a file
of the newest checkpoint is damaged after the run has ended."""

DAMAGES = ("truncate", "flip")
TO_A_WORKER = ("kill worker", "stop worker", *DAMAGES)

SEARCH_S = 0.05
"""Seconds between two searches through all processes."""


@dataclass(frozen=True)
class Plan:
    """A run and its fault.

    Attributes:
        case: A key of `soak.CASES`. The number at its end is the number of workers.
        kind: The fault, a key of `KINDS`.
        moment: The phase of the run: start-up, training, evaluation or checkpoint.
        stage: A random number that selects the worker, the file and the bit to damage.
        step: Number of optimizer steps after which the fault is injected.
        delay_s: Seconds between the moment and the fault. In start-up, the moment is the start of
            the process that the fault hits.
        place: Position of the damage in the file, as a fraction from 0 to 1.
    """

    case: str
    kind: str
    moment: str
    stage: int
    step: int
    delay_s: float
    place: float

    @property
    def worker(self) -> int:
        """The stage that the fault hits."""
        return self.stage % int(self.case.split()[-1])

    def when(self) -> str:
        """Return the time of the fault as text."""
        at = "" if self.moment == "start-up" else f" {self.step}"
        return f"{self.moment}{at} + {self.delay_s:.2f} s"


def inject(plan: Plan, session: Session, run_dir: Path) -> float | None:
    """Wait for the moment of a fault, and inject the fault.

    Return the time of the fault on the monotonic clock, in seconds; None if the run or a time limit
    ended before the fault.
    """
    target: int | None = None

    def found() -> bool:
        nonlocal target
        target = _target(plan, session)
        return target is not None

    # Before the fork server exists, the program has not installed its own signal handlers.
    if not session.wait_until(lambda: session.server() is not None, look_s=SEARCH_S):
        return None
    if not session.wait_until(found, look_s=SEARCH_S) or target is None:
        return None
    if plan.moment != "start-up" and not session.wait_until(lambda: _at(plan, run_dir)):
        return None
    sleep(plan.delay_s)
    return session.signal(KINDS[plan.kind][0], target)


def _target(plan: Plan, session: Session) -> int | None:
    # Return the id of the process that the fault hits; None if it does not exist yet.
    if plan.kind in TO_A_WORKER:
        workers = session.workers()
        return workers[plan.worker].pid if plan.worker < len(workers) else None
    if plan.kind == "kill fork server":
        server = session.server()
        return server.pid if server else None
    return session.pid


def _at(plan: Plan, run_dir: Path) -> bool:
    checkpoints = run_dir / "checkpoints"
    if plan.moment == "checkpoint" and (checkpoints / f".step-{plan.step}.unfinished").exists():
        return True
    return steps(run_dir) >= plan.step


def steps(run_dir: Path) -> int:
    """Return the largest step in a run's metrics and checkpoints; 0 if there is none."""
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max([*steps, *saved(run_dir)], default=0)


def saved(run_dir: Path) -> list[int]:
    """Return the steps of a run's checkpoints, in order."""
    names = (path.name for path in run_dir.glob("checkpoints/step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names)


def damage(plan: Plan, run_dir: Path) -> None:
    """Truncate a file of the newest checkpoint, or flip a bit in it."""
    newest = run_dir / "checkpoints" / f"step-{saved(run_dir)[-1]}"
    files = sorted(newest.glob("stage-*.safetensors"))
    path = files[plan.stage % len(files)]
    content = bytearray(path.read_bytes())
    place = int(plan.place * len(content))
    if plan.kind == "truncate":
        del content[place:]
    else:
        content[place] ^= 1 << plan.stage
    path.write_bytes(content)
