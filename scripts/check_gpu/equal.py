"""Steps that compare the weights of runs bit for bit, also after a fault and a resume."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts.benchmarks.session import Session, ppll_run
from scripts.check_gpu.report import Outcome, skipped, verdict
from scripts.check_gpu.running import Check, SkippedError, Train

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
        with endless(check, self.name, self.overrides) as session:
            hurt_s = session.signal(self.signal, session.workers()[-1].pid)
            status = session.wait(check.limited(2 * FOUND_S))
            found_s, left, output = monotonic() - hurt_s, session.left(), session.printed()
        facts = {"status": status, "found_s": round(found_s, 1), "left": left}
        if status != 1 or left or found_s > check.patience * FOUND_S:
            return wrong(check, output, **facts)
        steps = _saved(check, self.name) + 10
        again = ppll_run(f"resume={check.folder(self.name)}", f"max_steps={steps}")
        ended = check.command(f"{self.name} resumed", again, 80.0)
        if ended.late:
            return skipped("out of time", ended.output)
        if ended.status != 0:
            return verdict(False, output + ended.output, **facts)
        return _compared_with_whole(check, self, facts)


@dataclass(frozen=True)
class Restarted:
    """A step whose run loses a worker, and must restart only this worker (`recover=stage`).

    `overrides` are as for `LostWorker`.
    """

    name: str
    overrides: Sequence[str]

    def act(self, check: Check) -> Outcome:
        """Kill a worker, end the run after the restart, and compare it with a faultless run."""
        with endless(check, self.name, [*self.overrides, "recover=stage"]) as session:
            session.signal(signal.SIGKILL, session.workers()[-1].pid)
            limit_s = check.limited(60.0)
            again = session.wait_until(lambda: " continues after " in session.printed(), limit_s)
            session.signal(signal.SIGTERM, session.pid)
            status = session.wait(check.limited(30.0))
            left, output = session.left(), session.printed()
        facts = {"status": status, "restarted": again, "left": left}
        if not again or status != 128 + signal.SIGTERM or left:
            return wrong(check, output, **facts)
        return _compared_with_whole(check, self, facts)


@dataclass(frozen=True)
class Interrupted:
    """A step whose run gets Ctrl-C, and must save a checkpoint and end with status 130."""

    name: str
    overrides: Sequence[str]

    def act(self, check: Check) -> Outcome:
        """Interrupt the run after its first checkpoint, and check how it ends."""
        with endless(check, self.name, self.overrides) as session:
            session.signal(signal.SIGINT, session.pid)
            status = session.wait(check.limited(30.0))
            left, output = session.left(), session.printed()
        summary = check.folder(self.name) / "summary.json"
        if status != 128 + signal.SIGINT or left or not summary.exists():
            return wrong(check, output, status=status, left=left)
        return verdict(True, output, status=status)


@contextmanager
def endless(check: Check, name: str, overrides: Sequence[str]) -> Iterator[Session]:
    """Start a run that does not end, and provide its session after its first checkpoint.

    Raises:
        SkippedError: There is no checkpoint in time, or no /proc to find workers, as on macOS.
    """
    folder = check.folder(name)
    given = *overrides, *check.transport()
    command = ppll_run(*given, "max_steps=1000000", f"hydra.run.dir={folder}")
    last = folder / "checkpoints" / "last"
    with check.session(name, command) as session:
        limit_s = check.limited(90.0)
        if sys.platform != "linux" or not session.wait_until(last.exists, limit_s, look_s=0.1):
            reason = "no checkpoint in time, or no /proc to find workers"
            raise SkippedError(reason, session.printed())
        yield session


def _compared_with_whole(
    check: Check, step: LostWorker | Restarted, facts: Mapping[str, Any]
) -> Outcome:
    # Train a run without a fault for as many steps, and compare the last checkpoints.
    whole = Train(f"{step.name} whole", [*step.overrides, f"max_steps={_saved(check, step.name)}"])
    outcome = whole.act(check)
    if outcome.state == "ok":
        outcome = compared(check.folder(step.name), check.folder(whole.name))
    return replace(outcome, facts={**facts, **outcome.facts})


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
        f"they differ in {different[:5]}" if different else "",
        tensors=len(ours),
        different=len(different) or None,
        largest=max(gaps, default=None),
    )


def _saved(check: Check, run: str) -> int:
    last = (check.folder(run) / "checkpoints" / "last").resolve()
    return int(last.name.removeprefix("step-"))


def _tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted((folder / "checkpoints" / "last").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
