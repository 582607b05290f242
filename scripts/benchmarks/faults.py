"""Faults of the soak benchmark, done to a run from outside when their moment has come."""

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
"""Faults: the signal, and the status with which the run is to end.

The last two kill a worker, and damage a file of the newest checkpoint after that.
"""

DAMAGES = ("truncate", "flip")
TO_A_WORKER = ("kill worker", "stop worker", *DAMAGES)

SEARCH_S = 0.05
"""Between looks at all processes."""


@dataclass(frozen=True)
class Plan:
    """A run, and its fault.

    Attributes:
        case: Key of `soak.CASES`; it ends with how many workers there are.
        kind: Key of `KINDS`.
        moment: In which part of the run.
        stage: Which worker, of those that there are.
        step: When so many steps are done.
        delay_s: So long after that; in start-up, after what the fault is to hit was there.
        place: Where in the checkpoint, from 0 to 1.
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
        """The stage that the fault is to hit."""
        return self.stage % int(self.case.split()[-1])

    def when(self) -> str:
        """For the table."""
        at = "" if self.moment == "start-up" else f" {self.step}"
        return f"{self.moment}{at} + {self.delay_s:.2f} s"


def inject(plan: Plan, session: Session, run_dir: Path) -> float | None:
    """Wait for the moment, and do it; the time then, or None if the moment did not come."""
    target: int | None = None

    def found() -> bool:
        nonlocal target
        target = _target(plan, session)
        return target is not None

    # Once the fork server is there, signals are no longer Python's own business.
    if not session.wait_until(lambda: session.server() is not None, look_s=SEARCH_S):
        return None
    if not session.wait_until(found, look_s=SEARCH_S) or target is None:
        return None
    if plan.moment != "start-up" and not session.wait_until(lambda: _at(plan, run_dir)):
        return None
    sleep(plan.delay_s)
    return session.signal(KINDS[plan.kind][0], target)


def _target(plan: Plan, session: Session) -> int | None:
    """The process that the fault is to hit, if that is there yet."""
    if plan.kind in TO_A_WORKER:
        workers = session.workers()
        return workers[plan.worker].pid if plan.worker < len(workers) else None
    if plan.kind == "kill fork server":
        server = session.server()
        return server.pid if server else None
    return session.pid


def _at(plan: Plan, run_dir: Path) -> bool:
    """Whether the moment has come."""
    checkpoints = run_dir / "checkpoints"
    if plan.moment == "checkpoint" and (checkpoints / f".step-{plan.step}.unfinished").exists():
        return True
    return _steps(run_dir) >= plan.step


def _steps(run_dir: Path) -> int:
    """Steps that a run has done, as far as its folder shows."""
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max([*steps, *saved(run_dir)], default=0)


def saved(run_dir: Path) -> list[int]:
    """The steps of all checkpoints, in order."""
    names = (path.name for path in run_dir.glob("checkpoints/step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names)


def damage(plan: Plan, run_dir: Path) -> None:
    """Damage a file of the newest checkpoint."""
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
