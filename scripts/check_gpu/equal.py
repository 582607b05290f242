"""Steps that compare the weights of runs bit for bit, also after a fault and a resume."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts.benchmarks.session import Session, ppll_run
from scripts.check_gpu.report import Outcome, skipped, verdict
from scripts.check_gpu.running import Check

FOUND_S = 12.0
"""Seconds within which a run with a dead or stopped worker must end: 10 s to notice the fault, and
2 s to end."""


@dataclass(frozen=True)
class Equal:
    """A step that checks that the last checkpoints of two runs are equal, bit for bit."""

    name: str
    one: str
    other: str

    def act(self, check: Check) -> Outcome:
        """Compare the checkpoints. Skip the step if one of the runs did not complete."""
        for run in (self.one, self.other):
            if not (check.folder(run) / "summary.json").exists():
                return skipped(f"{run!r} did not complete")
        return compared(check.folder(self.one), check.folder(self.other))


@dataclass(frozen=True)
class LostWorker:
    """A step whose run loses a worker, must end with status 1, and is resumed.

    Attributes:
        overrides: Overrides of a run whose result depends only on its number of steps.
        signal: SIGKILL, or SIGSTOP, which makes the worker hang.
    """

    name: str
    overrides: Sequence[str]
    signal: signal.Signals

    def act(self, check: Check) -> Outcome:
        """Send the signal after the first checkpoint, resume, and compare with a faultless run."""
        folder = check.folder(self.name)
        endless = [*self.overrides, "max_steps=1000000", f"hydra.run.dir={folder}"]
        with check.session(self.name, ppll_run(*endless)) as session:
            if not _started(session, folder, check):
                return skipped("no checkpoint in time", session.printed())
            hurt_s = session.signal(self.signal, session.workers()[-1].pid)
            status = session.wait(check.limited(2 * FOUND_S))
            found_s, left, output = monotonic() - hurt_s, session.left(), session.printed()
        facts = {"status": status, "found_s": round(found_s, 1), "left": left}
        if status != 1 or left or found_s > check.patience * FOUND_S:
            return wrong(check, output, **facts)
        steps = _saved(folder) + 10
        again = ppll_run(f"resume={folder}", f"max_steps={steps}")
        whole = check.folder(f"{self.name} whole")
        unhurt = ppll_run(*self.overrides, f"max_steps={steps}", f"hydra.run.dir={whole}")
        for name, command in ((f"{self.name} resumed", again), (f"{self.name} whole", unhurt)):
            ended = check.command(name, command, 80.0)
            if ended.late:
                return skipped("out of time", output)
            if ended.status != 0:
                return verdict(False, output + ended.output, **facts)
        outcome = compared(folder, whole)
        return verdict(outcome.state == "ok", output, **facts, **outcome.facts)


@dataclass(frozen=True)
class Restarted:
    """A step whose run loses a worker, and must restart only this worker (`recover=stage`).

    `overrides` are as for `LostWorker`.
    """

    name: str
    overrides: Sequence[str]

    def act(self, check: Check) -> Outcome:
        """Kill a worker, end the run after the restart, and compare it with a faultless run."""
        folder, whole = check.folder(self.name), check.folder(f"{self.name} whole")
        endless = [*self.overrides, "recover=stage", "max_steps=1000000"]
        command = ppll_run(*endless, f"hydra.run.dir={folder}")
        with check.session(self.name, command) as session:
            if not _started(session, folder, check):
                return skipped("no checkpoint in time", session.printed())
            session.signal(signal.SIGKILL, session.workers()[-1].pid)
            limit_s = check.limited(60.0)
            again = session.wait_until(lambda: " continues after " in session.printed(), limit_s)
            session.signal(signal.SIGTERM, session.pid)
            status = session.wait(check.limited(30.0))
            left, output = session.left(), session.printed()
        facts = {"status": status, "restarted": again, "left": left}
        if not again or status != 128 + signal.SIGTERM or left:
            return wrong(check, output, **facts)
        unhurt = ppll_run(*self.overrides, f"max_steps={_saved(folder)}", f"hydra.run.dir={whole}")
        ended = check.command(f"{self.name} whole", unhurt, 80.0)
        if ended.late:
            return skipped("out of time", output)
        outcome = compared(folder, whole)
        right = ended.status == 0 and outcome.state == "ok"
        return verdict(right, output, **facts, **outcome.facts)


@dataclass(frozen=True)
class Interrupted:
    """A step whose run gets Ctrl-C, and must save a checkpoint and end with status 130."""

    name: str
    overrides: Sequence[str]

    def act(self, check: Check) -> Outcome:
        """Interrupt the run after its first checkpoint, and check how it ends."""
        folder = check.folder(self.name)
        command = ppll_run(*self.overrides, "max_steps=1000000", f"hydra.run.dir={folder}")
        with check.session(self.name, command) as session:
            if not _started(session, folder, check):
                return skipped("no checkpoint in time", session.printed())
            session.signal(signal.SIGINT, session.pid)
            status = session.wait(check.limited(30.0))
            left, output = session.left(), session.printed()
        if status != 128 + signal.SIGINT or left or not (folder / "summary.json").exists():
            return wrong(check, output, status=status, left=left)
        return verdict(True, output, status=status)


def wrong(check: Check, output: str, **facts: Any) -> Outcome:
    """Return "FAILED" for a step whose run did not end as it should.

    If the whole check has no time left, return "skipped": the step may not have waited long enough.
    """
    if check.left_s() <= 0:
        return skipped("no time left", output)
    return verdict(False, output, **facts)


def compared(one: Path, other: Path) -> Outcome:
    """Compare the last checkpoints of two run directories bit for bit."""
    ours, theirs = _tensors(one), _tensors(other)
    if not ours or ours.keys() != theirs.keys():
        names = sorted(ours.keys() ^ theirs.keys())[:5]
        return verdict(False, f"{len(ours)} and {len(theirs)} tensors; only in one: {names}")
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    gaps = [
        float((ours[name].double() - theirs[name].double()).abs().max())
        for name in different
        if ours[name].numel() and ours[name].shape == theirs[name].shape
    ]
    return verdict(
        not different,
        f"they differ in {different[:5]}",
        tensors=len(ours),
        different=len(different) or None,
        largest=max(gaps, default=None),
    )


def _saved(folder: Path) -> int:
    return int((folder / "checkpoints" / "last").resolve().name.removeprefix("step-"))


def _tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted((folder / "checkpoints" / "last").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _started(session: Session, folder: Path, check: Check) -> bool:
    """Wait for a checkpoint; return False on time-out, or outside Linux, where /proc is missing."""
    last = folder / "checkpoints" / "last"
    limit_s = check.limited(90.0)
    return sys.platform == "linux" and session.wait_until(last.exists, limit_s, look_s=0.1)
